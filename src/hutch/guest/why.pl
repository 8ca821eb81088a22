#!/usr/bin/perl
# hutch-why HOST: says whether a name may be reached from here, why, and what to do about it. It asks the resolver at the
# gateway, as every program does, and prints the reason that comes with the answer (RFC 8914). Exit code 1: it may not.
use strict;
use warnings;
use Socket;

sub fail { print STDERR "hutch-why: @_\n"; exit 2 }

my ($host, @more) = map { lc } @ARGV;
fail('one name, as in: hutch-why example.org') if @more or !defined $host;
$host =~ s{^[a-z]+://}{};
$host =~ s{[/:].*}{}s;
my @labels = split /\./, $host;
fail("'$host' is no name in plain letters, as the network knows it") if !@labels or grep { !/^[\w-]{1,63}$/a } @labels;

my $gateway;
open my $routes, '<', '/proc/net/route' or fail("no routes: $!");
while (<$routes>) { my @field = split; $gateway = pack 'L', hex $field[2] if $field[1] eq '00000000' }
fail('there is no way out of here') unless defined $gateway;

my $id = int rand 65536;
my $asked = join '', map({ pack 'C/a*', $_ } @labels), "\0", pack 'nn', 1, 1;
my $option = pack 'nn', 65083, 0;    # asks for the reason of a yes too
my $question = pack('n6', $id, 0x100, 1, 0, 0, 1) . $asked . pack('CnnNn/a*', 0, 41, 1232, 0, $option);
socket my $socket, PF_INET, SOCK_DGRAM, 0 or fail($!);
connect $socket, pack_sockaddr_in(53, $gateway) or fail($!);
my $answer = '';
for (1 .. 3) {
    send $socket, $question, 0;
    vec(my $ready = '', fileno $socket, 1) = 1;
    next unless select $ready, undef, undef, 2;
    recv $socket, $answer, 4096, 0;
    last if length $answer >= 12 and unpack('n', $answer) == $id;
    $answer = '';
}
fail('the resolver does not answer') if $answer eq '';

my (undef, $flags, $questions, @counts) = unpack 'n6', $answer;
my ($at, $blocked, $reason, @addresses) = (12 + $questions * length $asked);
for (1 .. $counts[0] + $counts[1] + $counts[2]) {
    $at++ while $at < length $answer and !(ord(substr $answer, $at, 1) & 192) and ord substr $answer, $at, 1;
    $at += $at < length $answer && ord(substr $answer, $at, 1) & 192 ? 2 : 1;
    last if $at + 10 > length $answer;
    my ($type, undef, undef, $data) = unpack 'nnNn/a*', substr $answer, $at;
    $at += 10 + length $data;
    push @addresses, join '.', unpack 'C4', $data if $type == 1 and length $data == 4;
    while ($type == 41 and length $data >= 4) {
        (my ($code, $value), $data) = unpack 'nn/a*a*', $data;
        ($blocked, $reason) = (15 == unpack('n', $value), substr $value, 2) if $code == 15 and length $value > 2;
    }
}
my $code = $flags & 15;
my %meaning = (0 => 'no address', 2 => 'the resolver got no answer', 3 => 'there is no such name');
$blocked //= !exists $meaning{$code};
$reason //= $blocked ? 'the resolver refuses it' : 'nothing is refused by name';
$reason =~ tr/\x20-\x7e//cd;
print "$host: ", $blocked ? 'blocked' : 'allowed', ": $reason\n";
print '  ', join(' ', @addresses) || $meaning{$code}, "\n" unless $blocked;
exit($blocked ? 1 : 0);

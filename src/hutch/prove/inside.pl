# What `hutch prove` runs as root inside a workspace, with no more than perl-base. It is told what to try, a line for
# each thing, fields between tabs, paths and packets in hexadecimal; "go" has it try all of them and answer, and "end"
# ends it. Nothing here judges: the host does, and takes none of these words on trust.
use strict;
use warnings;
use Errno ();
use Fcntl;
use POSIX ();
use Socket;

$| = 1;
$SIG{PIPE} = 'IGNORE';
my $patience = 1.5;    # seconds that a connection may take
my (@waiting, @children);
my $device = default_device();

sub now { (POSIX::times())[0] / POSIX::sysconf(POSIX::_SC_CLK_TCK()) }
sub raw { pack 'H*', $_[0] }

sub name_of {
    local $! = my $error = $_[0] + 0;    # which may be $! itself
    for my $name (sort keys %!) { return $name if $!{$name} }
    return "error $error";
}

sub answer {
    my ($id, $text) = @_;
    $text =~ s/[^\x20-\x7e]/ /g;
    print "answer\t$id\t", substr($text, 0, 300), "\n";
}

sub default_device {
    open my $file, '<', '/proc/net/route' or return '';
    while (<$file>) { my @field = split; return $field[0] if $field[1] eq '00000000' }
    return '';
}

# What is tried at once.

sub attempt {    # in a child, so that nothing that is granted stays; its exit code is the error
    my ($id, $do) = @_;
    my $child = fork // return answer($id, 'no process can be made');
    if ($child == 0) { $! = 0; POSIX::_exit($do->() ? 0 : $! + 0 || 255) }
    waitpid $child, 0;
    return answer($id, 'killed ' . ($? & 127)) if $? & 127;
    answer($id, $? ? name_of($? >> 8) : 'ok');
}

sub opened { sysopen my $file, $_[0], $_[1] | O_NONBLOCK | O_NOCTTY }

sub has_content {    # nspawn puts an empty file over what is not to be read
    my ($path) = @_;
    sysopen my $file, $path, O_RDONLY | O_NONBLOCK or return 0;
    my $size = sysread($file, my $data, 1) // return 0;
    return $size || ($! = POSIX::ENODATA) && 0;
}

sub written {
    my ($path, $mode, $text) = @_;
    unlink $path;
    sysopen my $file, $path, O_WRONLY | O_CREAT | O_EXCL, 0600 or return 0;
    syswrite $file, $text;
    return chmod $mode, $file;
}

sub call {
    my ($number, @words) = @_;
    my @arguments = map { my ($kind, $value) = split /:/, $_, 2; $kind eq 'n' ? $value + 0 : raw($value) . "\0" } @words;
    return syscall($number + 0, @arguments) >= 0;
}

sub as_user {
    my ($uid, $do) = @_;
    $) = "$uid $uid";
    POSIX::setgid($uid) and POSIX::setuid($uid) or return 0;
    return $do->();
}

sub reaches_by_vsock {    # see struct sockaddr_vm in linux/vm_sockets.h; the kernel gives up after two seconds
    my ($cid, $port) = @_;
    socket my $socket, 40, SOCK_STREAM, 0 or return 0;
    return connect $socket, pack('S S L L x4', 40, 0, $port, $cid);
}

sub lines_of {
    my ($path, $pattern) = @_;
    open my $file, '<', $path or return name_of($!);
    my @found;
    while (<$file>) { chomp; push @found, $_ if /$pattern/; last if @found > 5 }
    return 'lines ' . join ' | ', @found;
}

sub send_frames {
    my ($id, $count, $hex) = @_;
    my $socket = packet_socket(0) or return answer($id, name_of($!));
    my $sent = 0;
    for (1 .. $count) { $sent++ if defined send $socket->{socket}, raw($hex), 0, $socket->{address} }
    answer($id, $sent == $count ? "sent $sent" : name_of($!));
}

sub packet_socket {
    my ($protocol) = @_;
    socket my $socket, 17, SOCK_RAW, unpack('S', pack 'n', $protocol) or return;
    my $request = pack 'a16 x24', $device;
    ioctl $socket, 0x8933, $request or return;    # SIOCGIFINDEX
    my $address = pack 'S n i S C C a8', 17, $protocol, unpack('x16 i', $request), 1, 0, 6, '';
    bind $socket, $address or return;
    return { socket => $socket, address => $address };
}

sub serve {
    my ($id, $port) = @_;
    socket my $socket, AF_INET, SOCK_STREAM, 0 or return answer($id, name_of($!));
    setsockopt $socket, SOL_SOCKET, SO_REUSEADDR, 1;
    bind $socket, pack_sockaddr_in($port, INADDR_ANY) and listen $socket, 5 or return answer($id, name_of($!));
    my $child = fork // return answer($id, 'no process can be made');
    if ($child == 0) {
        alarm 60;
        while (accept my $peer, $socket) { syswrite $peer, "hutch\n" }
        POSIX::_exit(0);
    }
    push @children, $child;
    answer($id, 'listening');
}

# What is waited for, all at the same time.

sub await {
    my ($id, $socket, $for, $on) = @_;
    push @waiting, { id => $id, socket => $socket, for => $for, on => $on };
}

sub start_tcp {
    my ($id, $host, $port, $question) = @_;
    socket my $socket, AF_INET, SOCK_STREAM, 0 or return answer($id, name_of($!));
    fcntl $socket, F_SETFL, O_NONBLOCK;
    connect $socket, pack_sockaddr_in($port, inet_aton($host)) or $!{EINPROGRESS} or return answer($id, name_of($!));
    await($id, $socket, 'write', sub {
        my $error = unpack 'i', getsockopt $socket, SOL_SOCKET, SO_ERROR;
        return name_of($error) if $error;
        return 'open' unless defined $question;
        syswrite $socket, pack('n', length $question) . $question;
        await($id, $socket, 'read', sub {
            my $size = sysread $socket, my $data, 4096;
            return $size ? answered(substr $data, 2) : 'closed';
        });
        return undef;
    });
}

sub start_packet {
    my ($id, $kind, $protocol, $host, $port, $packet, $on) = @_;
    socket my $socket, AF_INET, $kind, $protocol or return answer($id, name_of($!));
    connect $socket, pack_sockaddr_in($port, inet_aton($host)) or return answer($id, name_of($!));
    defined send $socket, $packet, 0 or return answer($id, name_of($!));
    await($id, $socket, 'read', sub { recv($socket, my $data, 4096, 0) // return name_of($!); $on->($data) });
}

sub start_udp {
    my ($id, $host, $port, $question, $then) = @_;
    start_packet($id, SOCK_DGRAM, 0, $host, $port, $question, sub {
        my $text = answered($_[0]);
        return $text unless $then and $text =~ /^rcode 0 ([0-9.]+)/;
        start_tcp($id, $1, $then);
        return undef;
    });
}

sub answered {    # a DNS message: its code and the addresses in it
    my ($data) = @_;
    return 'answered' if length $data < 12;
    my (undef, $flags, $questions, $answers) = unpack 'n4', $data;
    my ($at, @found) = (12);
    $at = past_name($data, $at) + 4 for 1 .. $questions;
    for (1 .. $answers) {
        $at = past_name($data, $at);
        last if $at + 10 > length $data;
        my ($type, undef, undef, $size) = unpack 'n n N n', substr $data, $at, 10;
        push @found, inet_ntoa(substr $data, $at + 10, 4) if $type == 1 and $size == 4 and $at + 14 <= length $data;
        push @found, "type$type" if $type != 1;
        $at += 10 + $size;
    }
    return join ' ', 'rcode', $flags & 15, @found;
}

sub past_name {
    my ($data, $at) = @_;
    while ($at < length $data) {
        my $size = ord substr $data, $at, 1;
        return $at + 2 if $size >= 192;
        return $at + 1 if $size == 0;
        $at += 1 + $size;
    }
    return $at;
}

sub start_ping {
    my ($id, $host, $hex) = @_;
    my $on = sub { return ord(substr $_[0], 4 * (ord($_[0]) & 15), 1) == 0 ? 'pong' : undef };
    start_packet($id, SOCK_RAW, 1, $host, 0, raw($hex), $on);
}

sub start_arp {
    my ($id, $hex, $sender) = @_;
    my $packet = packet_socket(0x0806) or return answer($id, name_of($!));
    send $packet->{socket}, raw($hex), 0, $packet->{address};
    await($id, $packet->{socket}, 'read', sub {
        recv $packet->{socket}, my $data, 4096, 0;
        my $is_reply = length $data >= 42 && substr($data, 20, 2) eq "\0\2" && substr($data, 28, 4) eq inet_aton($sender);
        return $is_reply ? 'is at ' . join ':', map { sprintf '%02x', ord } split //, substr $data, 22, 6 : undef;
    });
}

sub await_all {
    my $end = now() + $patience;
    while (@waiting and now() < $end) {
        my ($reading, $writing) = ('', '');
        for my $task (@waiting) {
            vec($task->{for} eq 'read' ? $reading : $writing, fileno $task->{socket}, 1) = 1;
        }
        select $reading, $writing, undef, 0.1;
        for my $task (splice @waiting) {
            my $is_ready = vec $task->{for} eq 'read' ? $reading : $writing, fileno $task->{socket}, 1;
            my $before = @waiting;
            my $text = $is_ready ? $task->{on}->() : undef;
            if (defined $text) { answer($task->{id}, $text) }
            elsif (@waiting == $before) { push @waiting, $task }    # it was not what is waited for
        }
    }
    answer($_->{id}, 'timeout') for splice @waiting;
}

my %do = (
    open => sub { my ($id, $mode, $path) = @_; attempt($id, sub { opened(raw($path), $mode eq 'w' ? O_WRONLY : O_RDONLY) }) },
    read => sub { my ($id, $path) = @_; attempt($id, sub { has_content(raw($path)) }) },
    seen => sub { my ($id, $path) = @_; attempt($id, sub { lstat raw($path) }) },
    call => sub { my ($id, @call) = @_; attempt($id, sub { call(@call) }) },
    read_as => sub { my ($id, $uid, $path) = @_; attempt($id, sub { as_user($uid, sub { opened(raw($path), O_RDONLY) }) }) },
    file => sub { my ($id, $path, $mode) = @_; attempt($id, sub { written(raw($path), oct $mode, "hutch prove\n") }) },
    link => sub { my ($id, $target, $path) = @_; attempt($id, sub { unlink raw($path); symlink raw($target), raw($path) }) },
    remove => sub { my ($id, @paths) = @_; unlink map { raw($_) } @paths; answer($id, 'ok') },
    socket => sub { my ($id, @kind) = @_; attempt($id, sub { socket my $socket, $kind[0], $kind[1], $kind[2] }) },
    vsock => sub { my ($id, $cid, $port) = @_; attempt($id, sub { reaches_by_vsock($cid, $port) }) },
    lines => sub { my ($id, $path, $pattern) = @_; answer($id, lines_of(raw($path), raw($pattern))) },
    frame => \&send_frames,
    serve => \&serve,
    tcp => \&start_tcp,
    udp => sub { my ($id, $host, $port, $hex) = @_; start_udp($id, $host, $port, raw($hex)) },
    dns_tcp => sub { my ($id, $host, $hex) = @_; start_tcp($id, $host, 53, raw($hex)) },
    reach => sub { my ($id, $host, $hex, $port) = @_; start_udp($id, $host, 53, raw($hex), $port) },
    ping => \&start_ping,
    arp => \&start_arp,
    patience => sub { $patience = $_[1]; answer($_[0], 'ok') },
);

my @asked;
while (my $line = <DATA>) {
    chomp $line;
    my ($id, $what, @words) = split /\t/, $line;
    last if $id eq 'end';
    if ($id ne 'go') { push @asked, [$id, $what, @words]; next }
    for my $item (splice @asked) {
        my ($name, $kind, @rest) = @$item;
        ($do{$kind} // sub { answer($name, 'no such probe') })->($name, @rest);
    }
    await_all();
    print "done\n";
}
kill 'KILL', @children;
waitpid $_, 0 for @children;
__END__

"""What the kernel tells of packets that rules log, in a network namespace of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys

RULES = """
table ip seen {
    chain output {
        type filter hook output priority 0; policy accept;
        ct state new udp dport 53 log prefix "hutch allowed" group 83
        udp dport 9 log prefix "hutch learned" group 83
        ip protocol icmp icmp type echo-request log prefix "hutch denied" group 83
        tcp dport 444 log prefix "hutch refused" group 83
    }
}
"""
PROGRAM = """
import json, select, socket, time
from hutch.egress.nflog import Nflog

def heard():
    begun = time.monotonic()
    select.select([listener], [], [], 5)
    waited = time.monotonic() - begun
    return waited, [[p.prefix, p.source, p.destination, p.protocol, p.port] for p in listener.receive()]

def count_all():
    time.sleep(0.2)
    found = 0
    while packets := listener.receive():
        found += len(packets)
    return found

listener = Nflog()
result = {"nothing": listener.receive()}
try:
    Nflog()
except PermissionError as error:
    result["second"] = str(error)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.sendto(b"", ("127.0.0.5", 53))
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(bytes.fromhex("0800f7ff00000000"), ("127.0.0.6", 0))
socket.socket().connect_ex(("127.0.0.7", 444))
result["waited"], result["packets"] = heard()
for _ in range(100_000):
    udp.sendto(b"", ("127.0.0.8", 9))
result["found"] = count_all()
udp.sendto(b"", ("127.0.0.8", 9))  # what was lost is known as soon as something comes after it
result["found"] += count_all()
result["lost"] = listener.lost
listener.close()
Nflog().close()
print(json.dumps(result))
"""


def test_the_kernel_tells_of_each_packet() -> None:
    script = 'ip link set lo up && printf %s "$1" | nft -f - && exec "$2" -c "$3"'
    command = ["unshare", "-n", "sh", "-ec", script, "-", RULES, sys.executable, PROGRAM]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["nothing"] == []
    assert "NFLOG cannot be listened to" in result["second"]
    assert sorted(result["packets"]) == [
        ["hutch allowed", "127.0.0.1", "127.0.0.5", "udp", 53],
        ["hutch denied", "127.0.0.1", "127.0.0.6", "icmp", None],
        ["hutch refused", "127.0.0.1", "127.0.0.7", "tcp", 444],
    ]
    assert result["waited"] < 1  # 0.05 s on a host that is not busy
    assert result["lost"] > 0, "the flood was too small for this host"
    assert result["found"] + result["lost"] == 100_001

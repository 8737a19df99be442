package histories

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// network is a bridge to which each host has a link of its own. Packets are dropped at the bridge's
// end of a link, where neither host notices, by programs of classic BPF: Linux has these in more
// kernels than it has netem, and they tell directions apart.
type network struct {
	bridge string
	given  int // addresses
}

var networks atomic.Int64 // that were made by this process

// canCut reports whether hosts can have networks of their own, whose packets can be dropped.
func canCut() bool {
	_, ip := exec.LookPath("ip")
	_, tc := exec.LookPath("tc")
	return ip == nil && tc == nil && os.Geteuid() == 0
}

func newNetwork(l *lab) *network {
	l.t.Helper()
	n := &network{bridge: fmt.Sprintf("kr%d%c", os.Getpid(), 'a'+rune(networks.Add(1)-1)%26)}
	l.must("ip", "link", "add", n.bridge, "type", "bridge")
	l.t.Cleanup(func() { exec.Command("ip", "link", "del", n.bridge).Run() })
	l.must("ip", "link", "set", n.bridge, "up")
	return n
}

// attach makes a host's namespace, and its link to the bridge.
func (n *network) attach(l *lab, h *host, i int) {
	l.t.Helper()
	h.netns = fmt.Sprintf("%s-%d", n.bridge, i)
	h.link = h.netns
	l.must("ip", "netns", "add", h.netns)
	l.t.Cleanup(func() { exec.Command("ip", "netns", "del", h.netns).Run() }) // and its link
	for _, args := range []string{
		"ip link add " + h.link + " type veth peer name eth0 netns " + h.netns,
		"ip link set " + h.link + " master " + n.bridge + " up",
		"ip -n " + h.netns + " link set eth0 up",
		"ip -n " + h.netns + " link set lo up",
		"tc qdisc add dev " + h.link + " clsact",
	} {
		l.must(strings.Fields(args)...)
	}
	var err error
	if h.ns, err = os.Open(filepath.Join("/run/netns", h.netns)); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { h.ns.Close() })
}

// give gives a host an address that nobody has had, in place of its own.
func (n *network) give(l *lab, h *host) {
	l.t.Helper()
	n.given++
	addr := fmt.Sprintf("10.77.%d.%d", n.given/250, n.given%250+1)
	l.must("ip", "-n", h.netns, "addr", "flush", "dev", "eth0")
	l.must("ip", "-n", h.netns, "addr", "add", addr+"/16", "dev", "eth0")
	l.cluster.Servers[h.id].Raft = net.JoinHostPort(addr, "7000")
}

// cut takes a host off the network, or puts it back.
func (l *lab) cut(h *host, how string) { l.must("ip", "link", "set", h.link, how) }

// Directions of packets, as the bridge's end of a host's link has them.
const (
	from = "ingress"
	to   = "egress"
)

// Programs of classic BPF, as tc takes them. What a program returns is what becomes of the packet: 2
// drops it, -1 does not.
const everyPacket = "1,6 0 0 2"

// each drops packets at random, so many of a hundred.
func each(percent uint64) string {
	const random = 0xfffff000 + 56 // SKF_AD_OFF + SKF_AD_RANDOM
	return fmt.Sprintf("4,32 0 0 %d,53 1 0 %d,6 0 0 2,6 0 0 4294967295", uint32(random), 1<<32*percent/100)
}

// addressed drops the packets of IPv4 to an address.
func addressed(hostport string) string {
	addr, _, _ := net.SplitHostPort(hostport)
	ip := binary.BigEndian.Uint32(net.ParseIP(addr).To4())
	return fmt.Sprintf("6,40 0 0 12,21 0 3 2048,32 0 0 30,21 0 1 %d,6 0 0 2,6 0 0 4294967295", ip)
}

// drop has a program decide which packets of a host in one direction are dropped.
func (l *lab) drop(h *host, direction, program string) {
	l.t.Helper()
	l.must("tc", "filter", "add", "dev", h.link, direction, "protocol", "all", "prio", "1", "bpf", "bytecode", program, "direct-action")
}

// pass ends what drop does.
func (l *lab) pass(h *host, directions ...string) {
	l.t.Helper()
	for _, d := range directions {
		l.must("tc", "filter", "del", "dev", h.link, d)
	}
}

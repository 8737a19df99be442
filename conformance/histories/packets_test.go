package histories

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
)

// Packets are dropped in one direction and not in the other, and the network is whole again after.
func TestPacketsAreDroppedAsIsSaid(t *testing.T) {
	if !canCut() {
		if os.Getenv("CI") != "" {
			t.Fatal("this needs root, ip and tc")
		}
		return
	}
	l := &lab{t: t, cluster: cluster{Servers: map[string]*struct{ Raft, HTTP string }{}}}
	l.net = newNetwork(l)
	for i := range 3 {
		h := &host{id: fmt.Sprintf("s%d", i+1)}
		l.cluster.Servers[h.id] = new(struct{ Raft, HTTP string })
		l.net.attach(l, h, i+1)
		l.net.give(l, h)
		l.hosts = append(l.hosts, h)
	}
	a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
	l.net.give(l, b) // it moves
	for _, test := range []struct {
		name, program         string
		directions            []string
		out, back, thirdParty string // from a to b, from b to a, from a to c
	}{
		{"nothing", everyPacket, nil, "all", "all", "all"},
		{"mute", everyPacket, []string{from}, "none", "all", "none"},
		{"deaf", everyPacket, []string{to}, "all", "none", "all"},
		{"one way", addressed(l.cluster.Servers[b.id].Raft), []string{from}, "none", "all", "all"},
		{"loss", each(20), []string{from, to}, "most", "most", "most"},
	} {
		drop := func() {
			for _, d := range test.directions {
				l.drop(a, d, test.program)
			}
		}
		pass := func() { l.pass(a, test.directions...) }
		for _, way := range []struct {
			from, to *host
			want     string
		}{{a, b, test.out}, {b, a, test.back}, {a, c, test.thirdParty}} {
			if got := l.arrive(way.from, way.to, drop, pass); got != way.want {
				t.Errorf("%s: of the packets from %s to %s %s arrive, want %s", test.name, way.from.id, way.to.id, got, way.want)
			}
		}
	}
}

// arrive says how many packets arrive of those that are sent between drop and pass.
func (l *lab) arrive(from, to *host, drop, pass func()) string {
	l.t.Helper()
	addr, err := net.ResolveUDPAddr("udp4", l.cluster.Servers[to.id].Raft)
	if err != nil {
		l.t.Fatal(err)
	}
	in, err := inNamespace(to.ns, func() (*net.UDPConn, error) { return net.ListenUDP("udp4", addr) })
	if err != nil {
		l.t.Fatal(err)
	}
	defer in.Close()
	out, err := from.dial(context.Background(), "udp4", addr.String())
	if err != nil {
		l.t.Fatal(err)
	}
	defer out.Close()
	in.SetReadDeadline(time.Now().Add(10 * time.Second))
	send := func(what string, n int) {
		for range n {
			if _, err := out.Write([]byte(what)); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	read := func(last string) (n int) {
		for b := make([]byte, 10); ; n++ {
			size, err := in.Read(b)
			if err != nil {
				l.t.Fatal(err)
			}
			if string(b[:size]) == last {
				return n
			}
		}
	}
	const packets = 100 // which all fit into the socket's buffer
	send("first", 1)    // and who is where is known
	read("first")
	drop()
	send("x", packets)
	pass()
	send("last", 1)
	switch n := read("last"); {
	case n == 0:
		return "none"
	case n == packets:
		return "all"
	case n > packets/2:
		return "most"
	}
	return "few"
}

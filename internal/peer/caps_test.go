package peer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
)

// busy is a port "a" in a bubble, and who connects to it from where.
type busy struct {
	t    *testing.T
	ca   *ca
	ln   *pipes
	port *peer.Port
	raft *sink
	peer *sink
	told refusals
}

func bubbled(t *testing.T, o peer.PortOptions, f func(*busy)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &busy{t: t, ca: newCA(t), ln: newPipes(), told: make(refusals, 100)}
		o.TLS, o.OnRefuse = serverConfig(t, b.ca.source("a"), everybody), b.told.note
		b.port = peer.Listen(b.ln, o)
		b.raft, b.peer = drainTo(b.port.Listener(peer.ALPNRaft)), drainTo(b.port.Listener(peer.ALPNPeer))
		f(b)
		b.port.Close()
	})
}

// from dials from that host.
func (b *busy) from(host string) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		b.ln.conns <- &remote{there, &net.TCPAddr{IP: net.ParseIP(host), Port: 1}}
		return here, nil
	}
}

type remote struct {
	net.Conn
	addr net.Addr
}

func (r *remote) RemoteAddr() net.Addr { return r.addr }

// shy is a connection from host that says nothing.
func (b *busy) shy(host string) net.Conn {
	c, _ := b.from(host)(b.t.Context(), "", "")
	synctest.Wait()
	return c
}

func (b *busy) dial(id, host, alpn string) (*peer.Conn, error) {
	d := &peer.Dialer{Cluster: cluster, TLS: b.ca.source(id), DialContext: b.from(host)}
	c, err := d.Dial(b.t.Context(), "a", "pipe", alpn)
	time.Sleep(time.Millisecond) // the next is later
	return c, err
}

// connect dials and is admitted.
func (b *busy) connect(id, host, alpn string) *peer.Conn {
	b.t.Helper()
	c, err := b.dial(id, host, alpn)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// open fails unless nothing more than silence comes from the other side.
func (b *busy) open(name string, c net.Conn) {
	b.t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Nanosecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		b.t.Errorf("%s: %d, %v, want it open", name, n, err)
	}
	c.SetReadDeadline(time.Time{})
}

// refused fails unless the next refusal is that one.
func (b *busy) refused(want string) {
	b.t.Helper()
	synctest.Wait()
	select {
	case err := <-b.told:
		if !strings.Contains(err.Error(), want) {
			b.t.Errorf("%v, want %s", err, want)
		}
	default:
		b.t.Errorf("nobody is refused, want %s", want)
	}
}

func TestAnAddressHasSoManyHandshakes(t *testing.T) {
	bubbled(t, peer.PortOptions{MaxPending: 4, MaxPendingPerAddr: 2}, func(b *busy) {
		other, first, second := b.shy("10.0.0.2"), b.shy("10.0.0.1"), b.shy("10.0.0.1")
		third := b.shy("10.0.0.1")
		ended(t, first)
		b.refused("cut off before its handshake")
		b.open("second", second)
		b.open("third", third)

		b.shy("10.0.0.3")
		b.open("the oldest of four", other)
		b.shy("10.0.0.4")
		ended(t, other)
		b.open("second", second)
	})
}

func TestNonMembersPushNoMemberOut(t *testing.T) {
	member := func(id peer.Identity) bool { return id.ID == "m" }
	bubbled(t, peer.PortOptions{MaxPending: 4, Member: member}, func(b *busy) {
		c, server := b.connect("m", "10.0.0.1", peer.ALPNRaft), b.connect("x", "10.0.0.2", peer.ALPNPeer)
		ours, theirs := b.shy("10.0.0.1"), b.shy("10.0.0.2")
		flood := func() {
			for i := range 10 {
				b.shy(fmt.Sprintf("10.0.1.%d", i))
			}
		}
		flood()
		b.open("from where a member is connected", ours)
		ended(t, theirs)
		b.connect("m", "10.0.0.1", peer.ALPNRaft).Close()

		for range 4 {
			b.shy("10.0.0.1")
		}
		ended(t, ours) // the reserve is as large

		c.Close()
		(<-b.raft.conns).Close()
		(<-b.raft.conns).Close()
		ours = b.shy("10.0.0.1")
		flood()
		ended(t, ours) // no member is connected from there
		server.Close()
	})
}

// A server that was cut off comes back while what it had open looks alive here.
func TestServerIsNotKeptOutByItsDeadConnections(t *testing.T) {
	bubbled(t, peer.PortOptions{MaxPerServer: 4, MaxRaftPerServer: 2}, func(b *busy) {
		other := b.connect("c", "10.0.0.2", peer.ALPNRaft)
		first, second := b.connect("b", "10.0.0.1", peer.ALPNRaft), b.connect("b", "10.0.0.1", peer.ALPNRaft)
		call := b.connect("b", "10.0.0.1", peer.ALPNPeer)
		<-b.raft.conns
		go io.WriteString(first, "x")
		if _, err := io.ReadFull(<-b.raft.conns, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)

		third := b.connect("b", "10.0.0.1", peer.ALPNRaft)
		ended(t, second)
		b.refused("keyring://prod-1/server/b: closed for a newer connection")
		b.open("the one on which something was heard", first)
		b.open("of another protocol", call)
		b.open("of another server", other)

		b.connect("b", "10.0.0.1", peer.ALPNPeer)
		b.connect("b", "10.0.0.1", peer.ALPNPeer)
		ended(t, call)
		b.refused("keyring://prod-1/server/b: closed for a newer connection")
		b.open("first", first)
		b.open("third", third)
		b.open("of another server", other)
	})
}

func TestOutsidersLeavePlacesToMembers(t *testing.T) {
	var joined atomic.Value
	joined.Store("")
	member := func(id peer.Identity) bool {
		return strings.HasPrefix(id.ID, "member") || id.ID == joined.Load()
	}
	bubbled(t, peer.PortOptions{MaxConns: 10, MaxOutsiders: 8, Member: member}, func(b *busy) {
		host := func(i int) string { return fmt.Sprintf("10.0.0.%d", i) }
		first := b.connect("x0", host(0), peer.ALPNPeer)
		second := b.connect("x0", host(0), peer.ALPNPeer)
		b.connect("x0", host(0), peer.ALPNPeer) // a quarter is two
		ended(t, first)
		b.refused("server/x0: closed for a newer")
		for i := 1; i < 7; i++ {
			b.connect(fmt.Sprint("x", i), host(i), peer.ALPNPeer)
		}
		if _, err := b.dial("x7", host(7), peer.ALPNPeer); err == nil {
			t.Error("more outsiders than may be are admitted")
		}
		b.refused("server/x7: too many connections")
		b.connect("x0", host(0), peer.ALPNPeer)
		ended(t, second)
		b.refused("server/x0: closed for a newer")

		joined.Store("x0")
		b.connect("x0", host(0), peer.ALPNPeer) // and none of its others is an outsider's any more
		b.connect("x7", host(7), peer.ALPNPeer)
		if _, err := b.dial("member", host(9), peer.ALPNPeer); err == nil {
			t.Error("more than may be are admitted")
		}
		b.refused("server/member: too many connections")
		b.connect("x0", host(0), peer.ALPNPeer)
		b.refused("server/x0: closed for a newer")
	})
}

func TestFloodOfRefusalsIsToldInOneLine(t *testing.T) {
	bubbled(t, peer.PortOptions{}, func(b *busy) {
		flood := func(n int) {
			for range n {
				b.shy("10.0.0.1").Close()
			}
			synctest.Wait()
		}
		flood(4223)
		if len(b.told) != 10 {
			t.Errorf("%d are told", len(b.told))
		}
		for range 10 {
			b.refused("handshake")
		}
		time.Sleep(time.Second)
		b.refused("and 4213 more")
		flood(10)
		time.Sleep(time.Second)
		if len(b.told) != 10 {
			t.Errorf("%d are told, a second later", len(b.told))
		}
		for range 10 {
			b.refused("handshake")
		}
		flood(12)
		began := time.Now()
		b.port.Close()
		if took := time.Since(began); took != 0 {
			t.Errorf("Close took %v", took)
		}
		for range 10 {
			b.refused("handshake")
		}
		b.refused("and 2 more")
	})
}

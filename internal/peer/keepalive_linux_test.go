package peer_test

import (
	"net"
	"syscall"
	"testing"

	"example.com/keyring/internal/peer"
)

// What is half-open ends within half a minute, on both sides.
func TestConnectionsAreKeptAlive(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody)})
	s := drainTo(p.Listener(peer.ALPNRaft))
	c, err := dialPort(t, a, "b", p, peer.ALPNRaft)
	if err != nil {
		t.Fatal(err)
	}
	there := <-s.conns
	for name, c := range map[string]*peer.Conn{"dialled": c, "accepted": there} {
		on := sockopt(t, c, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
		idle := sockopt(t, c, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
		each := sockopt(t, c, syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL)
		count := sockopt(t, c, syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT)
		if on == 0 || idle+each*count > 30 {
			t.Errorf("%s: on: %d, after %d s, then %d times every %d s", name, on, idle, count, each)
		}
		c.Close()
	}
	p.Close()
}

func sockopt(t *testing.T, c *peer.Conn, level, option int) (v int) {
	t.Helper()
	raw, err := c.NetConn().(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if ctl := raw.Control(func(fd uintptr) { v, err = syscall.GetsockoptInt(int(fd), level, option) }); ctl != nil || err != nil {
		t.Fatal(ctl, err)
	}
	return v
}

package keyringgrpc

// Raft's connections, on the port of the grpc.Server. They leave it after the handshake.

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// StreamLayer returns raft's connections, to and from members, for raft.NewNetworkTransport. Raft's addresses
// are then those of the grpc.Servers. Each call returns the same StreamLayer; raft closes it.
func (p *Peers) StreamLayer() raft.StreamLayer { return p.raft }

type streamLayer struct {
	peers    *Peers
	accepted chan net.Conn
	once     sync.Once
	closed   chan struct{}
	life     context.Context // ends with hangUp
	end      context.CancelFunc
}

func newStreamLayer(p *Peers) *streamLayer {
	l := &streamLayer{peers: p, accepted: make(chan net.Conn), closed: make(chan struct{})}
	l.life, l.end = context.WithCancel(p.life)
	return l
}

// hangUp ends raft's connections, and refuses it others. Raft that was told to shut down waits for the
// answers of servers that hang, and for as long as it takes to dial them.
func (l *streamLayer) hangUp() {
	l.end()
	for _, c := range l.peers.conns.all() {
		if c.protocol == raftProtocol {
			c.cut()
		}
	}
}

// hand gives an accepted connection to raft, if that takes it in time. The grpc.Server clears the deadline of
// the connection after that; raft sets none where it accepts.
func (l *streamLayer) hand(c *conn) {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case l.accepted <- raftConn{c, l.peers}:
	case <-l.closed:
		c.cut()
	case <-late.C:
		c.cut()
	}
}

// raftConn is a connection of raft's. Raft keeps it, and takes whatever it reads: from a server that has been
// removed since it reads nothing.
type raftConn struct {
	*conn
	peers *Peers
}

// Read implements net.Conn.
func (c raftConn) Read(b []byte) (int, error) {
	n, err := c.conn.Read(b)
	if gone := c.peers.admits(c.server); gone != nil {
		return 0, fmt.Errorf("server %q: %w", c.server, gone) // raft closes the connection
	}
	return n, err
}

// Accept implements net.Listener.
func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Dial implements raft.StreamLayer. Raft has the address alone; the certificate has to have the ID.
func (l *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(l.life, timeout)
	defer cancel()
	to, err := l.peers.memberAt(string(addr))
	if err != nil {
		return nil, err
	}
	at, err := l.peers.addrOf(to)
	if err != nil {
		return nil, fmt.Errorf("dial server %q: %w", to.ID, err)
	}
	raw, err := l.peers.dial(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("dial server %q: %w", to.ID, err)
	}
	c, err := l.peers.secure(ctx, raw, to.ID, raftProtocol)
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial server %q at %s: %w", to.ID, at, err)
	}
	if l.life.Err() != nil { // hangUp may have been before the connection was kept
		c.cut()
		return nil, net.ErrClosed
	}
	return raftConn{c, l.peers}, nil
}

// Addr implements net.Listener: raft takes it for this server's address.
func (l *streamLayer) Addr() net.Addr { return address(l.peers.cfg.Addr) }

// Close implements net.Listener.
func (l *streamLayer) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// address is a host:port at which the others reach a server.
type address string

// Network implements net.Addr.
func (address) Network() string { return "tcp" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

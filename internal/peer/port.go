package peer

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// What zero means in PortOptions.
const (
	DefaultPending        = 64
	DefaultPendingPerAddr = 16
	DefaultConns          = 512
	DefaultPerServer      = 64
	DefaultRaftPerServer  = 8
	DefaultOutsiders      = 32
)

// PortOptions configure a Port.
type PortOptions struct {
	// TLS is from ServerConfig.
	TLS *tls.Config

	// Handshake bounds the time from accept to admission. Zero means DefaultTimeout.
	Handshake time.Duration

	// MaxPending bounds the connections whose handshake is under way. When one more arrives, the oldest
	// is closed, so that silent peers can't keep others out. Connections from an address at which a member
	// is connected have a bound of their own, of the same number: non-members elsewhere can't push them
	// out. Zero means DefaultPending.
	MaxPending int

	// MaxPendingPerAddr bounds those of one IP address. When one more arrives, the oldest from there is
	// closed. Zero means DefaultPendingPerAddr.
	MaxPendingPerAddr int

	// MaxConns bounds the admitted connections. Zero means DefaultConns.
	//
	// A server that is at this bound or one of those below is given a new connection in place of its own
	// that has been silent for longest: the connections that it had before it was cut off from here may
	// look alive for minutes, and must not keep it out. A server that has none to give up is refused.
	MaxConns int

	// MaxPerServer bounds the admitted connections of one server, and MaxRaftPerServer those of raft's
	// protocol among them. Zero means DefaultPerServer and DefaultRaftPerServer.
	MaxPerServer, MaxRaftPerServer int

	// MaxOutsiders bounds the admitted connections of all non-members together. One of them has at most a
	// quarter of that. Zero means DefaultOutsiders.
	MaxOutsiders int

	// Member reports whether a server is a member. It is asked at each admission. Nil means that all are.
	Member func(Identity) bool

	// OnRefuse, if set, is called for every connection that was not admitted, or was closed in favour of
	// another, and for every accept that failed. After 10 in one second it is only called once more, with
	// how many more there were and the address of the port. It is called concurrently, and must not call
	// Close.
	OnRefuse func(remote net.Addr, err error)
}

// Port is one listener for several protocols. Each connection has its TLS handshake in a goroutine of its own
// and under a deadline, and is then routed by its ALPN protocol. Only connections of verified servers of the
// cluster reach a Listener.
//
// A connection ends when a certificate of either end expires. Recheck cuts off the servers for which the present
// CAs no longer vouch, and Drop those that are no longer members.
type Port struct {
	ln   net.Listener
	o    PortOptions
	done chan struct{} // closed by Close
	wg   sync.WaitGroup

	refusals refusalLog

	mu        sync.Mutex // guards below
	closed    bool
	pending   []pending // the oldest is first
	conns     map[*Conn]bool
	admitted  uint64 // connections, so far
	listeners map[string]*listener
}

// pending is a connection whose handshake is under way.
type pending struct {
	net.Conn
	host  string
	known bool                  // a member was connected from its address when it came
	gone  []func(Identity) bool // the arguments of Drop since then
}

// Listen starts the port on ln, which it owns from now on.
func Listen(ln net.Listener, o PortOptions) *Port {
	p := &Port{
		ln: ln, o: o.filled(), done: make(chan struct{}),
		conns: make(map[*Conn]bool), listeners: make(map[string]*listener),
	}
	p.refusals = refusalLog{tell: p.o.OnRefuse, addr: ln.Addr(), done: p.done, wg: &p.wg}
	p.wg.Go(p.accept)
	return p
}

// filled returns the options with what zero means.
func (o PortOptions) filled() PortOptions {
	o.Handshake = cmp.Or(o.Handshake, DefaultTimeout)
	o.MaxPending = cmp.Or(o.MaxPending, DefaultPending)
	o.MaxPendingPerAddr = cmp.Or(o.MaxPendingPerAddr, DefaultPendingPerAddr)
	o.MaxConns = cmp.Or(o.MaxConns, DefaultConns)
	o.MaxPerServer = cmp.Or(o.MaxPerServer, DefaultPerServer)
	o.MaxRaftPerServer = cmp.Or(o.MaxRaftPerServer, DefaultRaftPerServer)
	o.MaxOutsiders = cmp.Or(o.MaxOutsiders, DefaultOutsiders)
	if o.Member == nil {
		o.Member = func(Identity) bool { return true }
	}
	if o.OnRefuse == nil {
		o.OnRefuse = func(net.Addr, error) {}
	}
	return o
}

// Addr returns the address of the port.
func (p *Port) Addr() net.Addr { return p.ln.Addr() }

// Listener returns the listener for one protocol. Its connections are *Conn. Before the first call, and after the
// listener was closed, connections for that protocol are refused.
func (p *Port) Listener(alpn string) net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.listeners[alpn]
	if !ok {
		l = &listener{addr: p.ln.Addr(), conns: make(chan *Conn), done: make(chan struct{})}
		p.listeners[alpn] = l
	}
	if p.closed {
		l.Close()
	}
	return l
}

// Drop closes the connections of the servers for which gone returns true. For a connection whose handshake is under
// way gone is called when the handshake is done, because it may have passed the membership check before the
// members changed. So gone may be called after Drop has returned, and by other goroutines. It must not call the
// port.
func (p *Port) Drop(gone func(Identity) bool) {
	p.mu.Lock()
	for i := range p.pending {
		p.pending[i].gone = append(p.pending[i].gone, gone)
	}
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()

	for _, c := range conns {
		if gone(c.peer) {
			p.cut(c)
		}
	}
}

// Close closes the listeners and every connection, and waits for the port's goroutines.
func (p *Port) Close() error {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	for _, l := range p.listeners {
		l.Close()
	}
	pending := p.pending
	p.pending = nil
	p.mu.Unlock()

	var err error
	if !again {
		close(p.done)
		err = p.ln.Close()
	}
	for _, c := range pending {
		c.Close()
	}
	p.Drop(func(Identity) bool { return true })
	p.wg.Wait()
	return err
}

// accept never waits for a peer. After an error, such as too many open files, it tries again more and more
// slowly, until Close.
func (p *Port) accept() {
	const longest = time.Second
	delay := 5 * time.Millisecond
	for {
		raw, err := p.ln.Accept()
		if err == nil {
			delay = 5 * time.Millisecond
			p.admit(raw)
			continue
		}
		if p.stopped() {
			return
		}
		p.refusals.note(p.ln.Addr(), fmt.Errorf("accept: %w", err))
		select {
		case <-time.After(delay):
			delay = min(2*delay, longest)
		case <-p.done:
			return
		}
	}
}

func (p *Port) stopped() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *Port) forget(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// cut closes the connection below TLS: a peer that does not read could hold up the alert.
func (p *Port) cut(c *Conn) {
	p.forget(c)
	cutOff(c)
}

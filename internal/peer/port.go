package peer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// Why a port refused a connection that its checks had nothing against.
var (
	errCut        = errors.New("cut off before its handshake was done: too many others, or the members changed")
	errFull       = errors.New("too many connections")
	errNoListener = errors.New("nobody listens for this protocol here")
)

// PortOptions configure a Port.
type PortOptions struct {
	// TLS is from ServerConfig.
	TLS *tls.Config

	// Handshake bounds the time from accept to admission. Zero means DefaultTimeout.
	Handshake time.Duration

	// MaxPending bounds the connections whose handshake is under way; when one more
	// arrives, the oldest is closed, so that silent peers can't keep others out. Zero
	// means 64.
	MaxPending int

	// MaxConns bounds the admitted connections; one more is refused. Zero means 512.
	MaxConns int

	// OnRefuse, if set, is told of every connection that was not admitted, and of accepts
	// that failed. It is called concurrently, and must not call Close.
	OnRefuse func(remote net.Addr, err error)
}

// Port is one listener whose connections are shaken hands with, each in a goroutine of its
// own and under a deadline, and then routed by their ALPN protocol. What is not a verified
// server of the cluster reaches no Listener.
//
// A certificate is looked at once, when its connection is made: whoever is no member any
// more is to be cut off with Drop.
type Port struct {
	ln   net.Listener
	o    PortOptions
	done chan struct{} // closed by Close
	wg   sync.WaitGroup

	mu        sync.Mutex // guards below
	closed    bool
	pending   []net.Conn // their handshake is under way; the oldest is first
	conns     map[*Conn]bool
	listeners map[string]*listener
}

// Listen starts the port on ln, which it owns from now on.
func Listen(ln net.Listener, o PortOptions) *Port {
	if o.Handshake == 0 {
		o.Handshake = DefaultTimeout
	}
	if o.MaxPending == 0 {
		o.MaxPending = 64
	}
	if o.MaxConns == 0 {
		o.MaxConns = 512
	}
	if o.OnRefuse == nil {
		o.OnRefuse = func(net.Addr, error) {}
	}
	p := &Port{
		ln: ln, o: o, done: make(chan struct{}),
		conns: make(map[*Conn]bool), listeners: make(map[string]*listener),
	}
	p.wg.Go(p.accept)
	return p
}

// Addr returns the address of the port.
func (p *Port) Addr() net.Addr { return p.ln.Addr() }

// Listener returns the listener for one protocol. Its connections are *Conn. Until it is
// asked for, and after it was closed, connections for that protocol are refused.
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

// Drop closes the connections of those that gone reports, and those whose handshake is
// under way: they may have passed the check before the members changed. Who is welcome
// dials again.
func (p *Port) Drop(gone func(Identity) bool) {
	p.mu.Lock()
	pending := p.pending
	p.pending = nil
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()

	for _, raw := range pending {
		raw.Close()
	}
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
	p.mu.Unlock()

	var err error
	if !again {
		close(p.done)
		err = p.ln.Close()
	}
	p.Drop(func(Identity) bool { return true })
	p.wg.Wait()
	return err
}

// accept never waits for a peer. An error, such as too many open files, passes or is the
// last: then only Close ends the waiting.
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
		p.o.OnRefuse(p.ln.Addr(), fmt.Errorf("accept: %w", err))
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

// admit starts the goroutine that brings a connection to its listener, or closes it.
func (p *Port) admit(raw net.Conn) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		raw.Close()
		return
	}
	var oldest net.Conn
	if len(p.pending) >= p.o.MaxPending {
		oldest = p.pending[0]
		p.pending = slices.Delete(p.pending, 0, 1)
	}
	p.pending = append(p.pending, raw)
	p.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	p.wg.Go(func() {
		err := p.bring(raw)
		if err == nil {
			return
		}
		raw.Close()
		if !p.stopped() {
			p.o.OnRefuse(raw.RemoteAddr(), err)
		}
	})
}

func (p *Port) bring(raw net.Conn) error {
	c, err := p.handshake(raw)
	if err != nil {
		drain(raw)
	}
	l, err := p.settle(raw, c, err)
	if err != nil {
		return err
	}
	if err := p.deliver(c, l); err != nil {
		p.cut(c)
		return fmt.Errorf("%s: %w", c.peer, err)
	}
	return nil
}

func (p *Port) handshake(raw net.Conn) (*Conn, error) {
	if err := raw.SetDeadline(time.Now().Add(p.o.Handshake)); err != nil {
		return nil, err
	}
	tc := tls.Server(raw, p.o.TLS)
	if err := tc.Handshake(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	id, err := identityOf(tc.ConnectionState())
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: tc, peer: id, forget: p.forget}, nil
}

// settle ends the pending state, in which a handshake came to c or to err, and returns the
// listener for c.
func (p *Port) settle(raw net.Conn, c *Conn, err error) (*listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.pending, raw)
	if i < 0 {
		return nil, errCut
	}
	p.pending = slices.Delete(p.pending, i, i+1)
	if err != nil {
		return nil, err
	}
	l := p.listeners[c.ConnectionState().NegotiatedProtocol]
	switch {
	case p.closed:
		return nil, net.ErrClosed
	case l == nil || l.closed():
		return nil, fmt.Errorf("%s: %w", c.peer, errNoListener)
	case len(p.conns) >= p.o.MaxConns:
		return nil, fmt.Errorf("%s: %w", c.peer, errFull)
	}
	p.conns[c] = true
	return l, nil
}

// deliver says that c is admitted and hands it over, if somebody takes it in time.
func (p *Port) deliver(c *Conn, l *listener) error {
	if _, err := c.Write([]byte{admitted}); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	late := time.NewTimer(p.o.Handshake)
	defer late.Stop()
	select {
	case l.conns <- c:
		return nil
	case <-l.done:
		return errNoListener
	case <-late.C:
		return errNoListener
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

// listener is where the connections of one protocol come out.
type listener struct {
	addr  net.Addr
	conns chan *Conn
	once  sync.Once
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) closed() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *listener) Addr() net.Addr { return l.addr }

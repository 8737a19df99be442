package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// PortOptions configure a Port.
type PortOptions struct {
	// TLS is from ServerConfig.
	TLS *tls.Config

	// Handshake bounds the time from accept to admission. Zero means DefaultTimeout.
	Handshake time.Duration

	// MaxPending bounds the connections whose handshake is under way; when one more
	// arrives, the oldest is closed, so that silent peers can't keep others out. Those from
	// an address at which a member is connected are counted apart, as many again: strangers
	// elsewhere push none of them out. Zero means 64.
	MaxPending int

	// MaxPendingPerAddr bounds them for each address, ports apart; when one more arrives, the
	// oldest from there is closed. Zero means 16.
	MaxPendingPerAddr int

	// MaxConns bounds the admitted connections. Zero means 512.
	//
	// Whoever is at this bound or one of those below gets a new connection in place of the
	// one of its own that has been silent for longest: what a server had open before it was
	// cut off from here may look alive for minutes, and must not keep it out. Who has none
	// to give is refused.
	MaxConns int

	// MaxPerServer bounds the admitted connections of one server, and MaxRaftPerServer those
	// among them of raft's protocol, of which a server has a few. Zero means 64, and 8.
	MaxPerServer, MaxRaftPerServer int

	// MaxOutsiders bounds the admitted connections of servers that are no members, all
	// together; one of them has at most a quarter. What is left is the members'. Zero means 32.
	MaxOutsiders int

	// Member tells who is a member. It is asked at each admission. Nil means that all are.
	Member func(Identity) bool

	// OnRefuse, if set, is told of every connection that was not admitted, or had to give way
	// to another, and of accepts that failed. Of more than 10 in a second it is only told how
	// many more they were, with the address of the port. It is called concurrently, and must
	// not call Close.
	OnRefuse func(remote net.Addr, err error)
}

// Port is one listener whose connections are shaken hands with, each in a goroutine of its
// own and under a deadline, and then routed by their ALPN protocol. What is not a verified
// server of the cluster reaches no Listener.
//
// A connection ends with the certificates of both ends. Whom the CAs of now do not vouch for is cut off
// with Recheck, and who is no member any more with Drop.
type Port struct {
	ln   net.Listener
	o    PortOptions
	done chan struct{} // closed by Close
	wg   sync.WaitGroup

	told teller

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
	known bool                  // when it came, a member was connected from there
	gone  []func(Identity) bool // who Drop was told of meanwhile
}

// Listen starts the port on ln, which it owns from now on.
func Listen(ln net.Listener, o PortOptions) *Port {
	p := &Port{
		ln: ln, o: o.filled(), done: make(chan struct{}),
		conns: make(map[*Conn]bool), listeners: make(map[string]*listener),
	}
	p.told = teller{tell: p.o.OnRefuse, addr: ln.Addr(), done: p.done, wg: &p.wg}
	p.wg.Go(p.accept)
	return p
}

// filled returns the options with what zero means.
func (o PortOptions) filled() PortOptions {
	o.Handshake = cmp.Or(o.Handshake, DefaultTimeout)
	o.MaxPending = cmp.Or(o.MaxPending, 64)
	o.MaxPendingPerAddr = cmp.Or(o.MaxPendingPerAddr, 16)
	o.MaxConns = cmp.Or(o.MaxConns, 512)
	o.MaxPerServer = cmp.Or(o.MaxPerServer, 64)
	o.MaxRaftPerServer = cmp.Or(o.MaxRaftPerServer, 8)
	o.MaxOutsiders = cmp.Or(o.MaxOutsiders, 32)
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

// Drop closes the connections of those that gone reports. Whose handshake is under way is asked for
// when it is done, since it may have passed the check before the members changed: gone may be called
// until then, by other goroutines, and must not call the port.
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
		p.told.note(p.ln.Addr(), fmt.Errorf("accept: %w", err))
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
	keepAlive(raw)
	oldest, ok := p.enqueue(raw)
	if oldest != nil {
		oldest.Close()
	}
	if !ok {
		raw.Close()
		return
	}
	p.wg.Go(func() {
		err := p.bring(raw)
		if err == nil {
			return
		}
		raw.Close()
		p.refused(raw, err)
	})
}

func (p *Port) refused(c net.Conn, err error) {
	if !p.stopped() {
		p.told.note(c.RemoteAddr(), err)
	}
}

// enqueue makes raw pending, and returns the one that gives way to it, if any.
func (p *Port) enqueue(raw net.Conn) (oldest net.Conn, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, false
	}
	c := pending{Conn: raw, host: hostOf(raw)}
	c.known = p.memberAt(c.host)
	if i := p.crowded(c); i >= 0 {
		oldest = p.pending[i]
		p.pending = slices.Delete(p.pending, i, i+1)
	}
	p.pending = append(p.pending, c)
	return oldest, true
}

// crowded returns the index of the pending connection that gives way to c: the oldest of its
// address, if that has too many, else the oldest of those that c is counted with; or -1.
func (p *Port) crowded(c pending) int {
	same := func(q pending) bool { return q.host == c.host }
	if i := oldestOf(p.pending, p.o.MaxPendingPerAddr, same); i >= 0 {
		return i
	}
	return oldestOf(p.pending, p.o.MaxPending, func(q pending) bool { return q.known == c.known })
}

// oldestOf returns the index of the first for which is holds, if it holds for as many as most, or -1.
func oldestOf(list []pending, most int, is func(pending) bool) int {
	n := 0
	for _, q := range list {
		if is(q) {
			n++
		}
	}
	if n < most {
		return -1
	}
	return slices.IndexFunc(list, is)
}

func (p *Port) memberAt(host string) bool {
	for c := range p.conns {
		if c.member && c.host == host {
			return true
		}
	}
	return false
}

// hostOf returns the address of the other side without its port.
func hostOf(c net.Conn) string {
	addr := c.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

func (p *Port) bring(raw net.Conn) error {
	c, err := p.handshake(raw)
	if err != nil {
		drain(raw)
	}
	if err == nil {
		c.endWith(c.ConnectionState().VerifiedChains)
	}
	l, old, err := p.settle(raw, c, err)
	if err != nil && c != nil {
		c.stopTimer()
	}
	if old != nil {
		cutOff(old)
		p.refused(old, fmt.Errorf("%s: %w", old.peer, errGaveWay))
	}
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
	own := new(shown)
	if err := tc.HandshakeContext(own.note(context.Background())); err != nil { // its deadline is raw's
		return nil, fmt.Errorf("handshake: %w", err)
	}
	id, err := identityOf(tc.ConnectionState())
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: tc, peer: id, shown: own, forget: p.forget, host: hostOf(raw)}
	c.raft = tc.ConnectionState().NegotiatedProtocol == ALPNRaft
	c.hear()
	return c, nil
}

// settle ends the pending state, in which a handshake came to c or to err. It returns the
// listener for c, and the connection that gives way to it, if any.
func (p *Port) settle(raw net.Conn, c *Conn, err error) (l *listener, old *Conn, _ error) {
	member := err == nil && p.o.Member(c.peer)
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.pending, func(q pending) bool { return q.Conn == raw })
	if i < 0 {
		return nil, nil, errCut
	}
	gone := p.pending[i].gone
	p.pending = slices.Delete(p.pending, i, i+1)
	if err != nil {
		return nil, nil, err
	}
	if slices.ContainsFunc(gone, func(gone func(Identity) bool) bool { return gone(c.peer) }) {
		return nil, nil, fmt.Errorf("%s: %w", c.peer, errDropped)
	}
	l = p.listeners[c.ConnectionState().NegotiatedProtocol]
	switch {
	case p.closed:
		return nil, nil, net.ErrClosed
	case l == nil || l.closed():
		return nil, nil, fmt.Errorf("%s: %w", c.peer, errNoListener)
	}
	c.member = member
	if old, err = p.room(c); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.peer, err)
	}
	p.admitted++
	c.number = p.admitted
	delete(p.conns, old)
	p.conns[c] = true
	return l, old, nil
}

// room returns the connection that has to give way to c, or nil if there is room for it.
func (p *Port) room(c *Conn) (*Conn, error) {
	var own, raft []*Conn
	outsiders := 0
	for o := range p.conns {
		if o.peer == c.peer {
			o.member = c.member // it may have become one, or be one no more
			own = append(own, o)
			if o.raft {
				raft = append(raft, o)
			}
		}
		if !o.member {
			outsiders++
		}
	}
	mine := p.o.MaxPerServer
	if !c.member {
		mine = min(mine, max(1, p.o.MaxOutsiders/4))
	}
	switch {
	case c.raft && len(raft) >= p.o.MaxRaftPerServer:
		return quietest(raft), nil
	case len(own) >= mine, !c.member && outsiders >= p.o.MaxOutsiders, len(p.conns) >= p.o.MaxConns:
		if len(own) == 0 {
			return nil, errFull
		}
		return quietest(own), nil
	}
	return nil, nil
}

// quietest returns the connection that nothing was heard on for longest. What is half-open
// is among those, for nothing can be heard on it.
func quietest(conns []*Conn) *Conn {
	return slices.MinFunc(conns, func(a, b *Conn) int {
		return cmp.Or(cmp.Compare(a.heard.Load(), b.heard.Load()), cmp.Compare(a.number, b.number))
	})
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

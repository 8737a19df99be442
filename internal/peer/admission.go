package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"time"
)

// A connection that was accepted is pending while its handshake is under way. Then it is admitted: it takes a place
// among the connections of the port, and is handed to the listener of its protocol.

// admit starts the goroutine that admits a connection or closes it.
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
		err := p.serve(raw)
		if err == nil {
			return
		}
		raw.Close()
		p.refused(raw, err)
	})
}

func (p *Port) refused(c net.Conn, err error) {
	if !p.stopped() {
		p.refusals.note(c.RemoteAddr(), err)
	}
}

// enqueue makes raw pending, and returns the pending connection that is closed in favour of it, if any.
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

// crowded returns the index of the pending connection that is closed in favour of c: the oldest from its address,
// if that has too many, otherwise the oldest of those with which c shares a bound. It returns -1 if there is room.
func (p *Port) crowded(c pending) int {
	same := func(q pending) bool { return q.host == c.host }
	if i := oldestOf(p.pending, p.o.MaxPendingPerAddr, same); i >= 0 {
		return i
	}
	return oldestOf(p.pending, p.o.MaxPending, func(q pending) bool { return q.known == c.known })
}

// oldestOf returns the index of the first connection for which is returns true, if it does so for at least most of
// them, or -1.
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

// serve brings a connection to its listener.
func (p *Port) serve(raw net.Conn) error {
	c, err := p.handshake(raw)
	if err != nil {
		drain(raw)
	}
	if err == nil {
		c.endWith(c.ConnectionState().VerifiedChains)
	}
	l, old, err := p.takePlace(raw, c, err)
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

// takePlace ends the pending state of a connection, whose handshake resulted in c or in err. It returns the
// listener for c, and the connection that is closed in favour of c, if any.
func (p *Port) takePlace(raw net.Conn, c *Conn, err error) (l *listener, old *Conn, _ error) {
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

// room returns the connection that has to be closed in favour of c, or nil if there is room.
func (p *Port) room(c *Conn) (*Conn, error) {
	var same, raft []*Conn // of the same server
	outsiders := 0
	for o := range p.conns {
		if o.peer == c.peer {
			o.member = c.member // it may have become one, or have been removed
			same = append(same, o)
			if o.raft {
				raft = append(raft, o)
			}
		}
		if !o.member {
			outsiders++
		}
	}
	most := p.o.MaxPerServer
	if !c.member {
		most = min(most, max(1, p.o.MaxOutsiders/4))
	}
	switch {
	case c.raft && len(raft) >= p.o.MaxRaftPerServer:
		return quietest(raft), nil
	case len(same) >= most, !c.member && outsiders >= p.o.MaxOutsiders, len(p.conns) >= p.o.MaxConns:
		if len(same) == 0 {
			return nil, errFull
		}
		return quietest(same), nil
	}
	return nil, nil
}

// quietest returns the connection on which nothing was received for longest. Half-open connections are among those.
func quietest(conns []*Conn) *Conn {
	return slices.MinFunc(conns, func(a, b *Conn) int {
		return cmp.Or(cmp.Compare(a.heard.Load(), b.heard.Load()), cmp.Compare(a.number, b.number))
	})
}

// deliver tells the other end that c is admitted, and hands c over, if a caller of Accept takes it in time.
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

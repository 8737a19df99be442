package keyringgrpc

// The TLS connections of a port: how many there may be, and how long they are good.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

const (
	maxPending   = 128 // handshakes under way
	maxPerServer = 8   // connections of one server, for one protocol
)

// conns are the connections of one Peers. Of clients' it counts only how many there are.
type conns struct {
	maxClients int

	mu      sync.Mutex // guards below
	closed  bool
	pending []net.Conn // the oldest is first
	open    map[*conn]bool
	clients int
	made    uint64 // so far
}

// conn is a connection after its handshake.
type conn struct {
	*tls.Conn
	of       *conns
	server   raft.ServerID // the other end; empty if that is a client
	protocol string
	dialled  string            // the address, if this side has made it
	own      *x509.Certificate // that this side has shown, as far as that is known
	number   uint64            // guarded by of
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.forget(c)
	return c.Conn.Close()
}

// cut closes the connection below TLS: an end that does not read could hold up the alert.
func (c *conn) cut() {
	c.of.forget(c)
	c.NetConn().Close()
}

// begin notes an accepted connection whose handshake begins. If there are too many, the oldest one of the
// address that has most gives way: ends that say nothing must not keep others out.
func (s *conns) begin(raw net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if len(s.pending) == maxPending {
		i := mostFrom(s.pending)
		s.pending[i].Close()
		s.pending = slices.Delete(s.pending, i, i+1)
	}
	s.pending = append(s.pending, raw)
	return nil
}

// mostFrom returns the first of the connections from the address that has most of them.
func mostFrom(all []net.Conn) (first int) {
	count, most := map[string]int{}, 0
	for _, c := range all {
		host := hostOf(c)
		count[host]++
		most = max(most, count[host])
	}
	return slices.IndexFunc(all, func(c net.Conn) bool { return count[hostOf(c)] == most })
}

func hostOf(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}

// end notes that the handshake has ended, well or not.
func (s *conns) end(raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = slices.DeleteFunc(s.pending, func(c net.Conn) bool { return c == raw })
}

// add takes a connection, or says why not. A server that has too many gets it in place of its oldest one:
// those from before it was cut off from here may look alive for a while.
func (s *conns) add(c *conn) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	if c.server == "" && s.clients >= s.maxClients {
		s.mu.Unlock()
		return fmt.Errorf("clients have %d connections, which is the maximum", s.maxClients)
	}
	s.made++
	c.of, c.number = s, s.made
	s.open[c] = true
	if c.server == "" {
		s.clients++
	}
	old := s.crowded(c)
	s.mu.Unlock()
	if old != nil {
		old.cut()
	}
	return nil
}

// crowded returns the oldest of the connections of c's server, for the same and made by the same side, if
// there are too many.
func (s *conns) crowded(c *conn) (oldest *conn) {
	n := 0
	for o := range s.open {
		if c.server == "" || o.server != c.server || o.protocol != c.protocol || (o.dialled == "") != (c.dialled == "") {
			continue
		}
		n++
		if oldest == nil || o.number < oldest.number {
			oldest = o
		}
	}
	if n <= maxPerServer || c.dialled != "" {
		return nil
	}
	return oldest
}

func (s *conns) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[c] && c.server == "" {
		s.clients--
	}
	delete(s.open, c)
}

// all returns the connections of servers.
func (s *conns) all() (servers []*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if c.server != "" {
			servers = append(servers, c)
		}
	}
	return servers
}

// close ends the connections of servers, and lets no more begin.
func (s *conns) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, c := range s.all() {
		c.cut()
	}
}

// outlived is why the certificates of a connection would not be accepted now.
func (c *conn) outlived(base *tls.Config) error {
	if c.own != nil && now(base).After(c.own.NotAfter) {
		return errors.New("this side's certificate has expired")
	}
	roots, usage := base.RootCAs, x509.ExtKeyUsageServerAuth
	if c.dialled == "" {
		usage = x509.ExtKeyUsageClientAuth
		if base.ClientCAs != nil {
			roots = base.ClientCAs
		}
	}
	if roots == nil {
		return errors.New("no RootCAs")
	}
	state := c.ConnectionState()
	var err error
	if state.VerifiedChains, err = verify(base, roots, usage, state.PeerCertificates); err != nil {
		return err
	}
	if base.VerifyPeerCertificate != nil {
		var raw [][]byte
		for _, cert := range state.PeerCertificates {
			raw = append(raw, cert.Raw)
		}
		if err := base.VerifyPeerCertificate(raw, state.VerifiedChains); err != nil {
			return err
		}
	}
	if base.VerifyConnection != nil {
		return base.VerifyConnection(state)
	}
	return nil
}

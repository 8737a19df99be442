package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/mono"
)

// DefaultTimeout is how long a connection may take to be made and admitted.
const DefaultTimeout = 10 * time.Second

// admitted is the first byte from a server, which says that it has taken the connection.
const admitted = 0x01

// Conn is a connection between two servers that have both been verified.
type Conn struct {
	*tls.Conn
	peer   Identity
	shown  *shown
	forget func(*Conn)  // of the port, or of the dialer
	heard  atomic.Int64 // when the last byte came: a mono.Time

	dialled bool // by this side

	life    sync.Mutex  // guards below
	expires time.Time   // when the first certificate of it ends
	timer   *time.Timer // cuts it off then; nil if another clock decides, and at the end
	over    bool        // it is closed: nothing is to wait any more

	number uint64 // guarded by the port or the dialer: which of its connections this is
	host   string // for the port: where it comes from
	raft   bool   // for the port: what runs on it
	member bool   // guarded by the port
}

// Identity returns the other side's.
func (c *Conn) Identity() Identity { return c.peer }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.hear()
	}
	return n, err
}

func (c *Conn) hear() { c.heard.Store(int64(mono.Now())) }

// Close closes the connection, and gives its place at the port back.
func (c *Conn) Close() error {
	c.stopTimer()
	if c.forget != nil {
		c.forget(c)
	}
	return c.Conn.Close()
}

// Dialer makes connections to the ports of other servers.
type Dialer struct {
	Cluster string
	TLS     Source

	// Timeout bounds one dial up to the admission. Zero means DefaultTimeout.
	Timeout time.Duration

	// DialContext makes the TCP connection. Nil means net.Dialer's.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)

	// Elsewhere, if set, returns where a server may be that is not found at addr.
	Elsewhere func(server, addr string) []string

	mu      sync.Mutex // guards below
	conns   map[*Conn]bool
	dialled uint64 // connections, so far
}

// Dial connects to the server of that ID, which is expected at addr, for the protocol; an
// empty ID is AnyServer, as in ClientConfig. It returns when the other side has admitted this one. An error says
// which server was dialled. If this side refused the other, the error says which check failed; otherwise it has
// the alert of the other side.
//
// The addresses that Elsewhere returns are dialled too, as in Happy Eyeballs, RFC 8305: the next one when one has
// failed, or has not answered for a quarter of a second. The first connection wins.
func (d *Dialer) Dial(ctx context.Context, server, addr, alpn string) (*Conn, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addrs := []string{addr}
	if d.Elsewhere != nil {
		addrs = append(addrs, d.Elsewhere(server, addr)...)
	}
	if len(addrs) == 1 {
		return d.dial(ctx, server, addr, alpn)
	}
	return d.dialAny(ctx, server, addrs, alpn)
}

// nextAddress is how long a dial waits for an answer before it also tries another address.
const nextAddress = 250 * time.Millisecond

// dialAny dials the addresses until one answers. It returns when every dial that it has begun has ended.
func (d *Dialer) dialAny(ctx context.Context, server string, addrs []string, alpn string) (first *Conn, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn *Conn
		err  error
	}
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	var errs []error
	for dialing := 0; dialing > 0 || first == nil && len(addrs) > 0; {
		var due <-chan time.Time
		if first == nil && len(addrs) > 0 {
			due = next.C
		}
		select {
		case <-due:
			addr := addrs[0]
			addrs, dialing = addrs[1:], dialing+1
			go func() {
				c, err := d.dial(ctx, server, addr, alpn)
				results <- result{c, err}
			}()
			next.Reset(nextAddress)
		case r := <-results:
			dialing--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
				next.Reset(0)
			case first == nil:
				first = r.conn
				cancel() // the others end at once
			default:
				r.conn.Close()
			}
		}
	}
	if first == nil {
		return nil, errors.Join(errs...)
	}
	return first, nil
}

func (d *Dialer) dial(ctx context.Context, server, addr, alpn string) (*Conn, error) {
	c, err := d.connect(ctx, server, addr, alpn)
	if err != nil {
		return nil, &DialError{server, addr, causeOf(err), err}
	}
	return c, nil
}

func (d *Dialer) connect(ctx context.Context, server, addr, alpn string) (*Conn, error) {
	config, err := ClientConfig(d.TLS, d.Cluster, server, alpn)
	if err != nil {
		return nil, err
	}
	dialRaw := d.DialContext
	if dialRaw == nil {
		dialRaw = new(net.Dialer).DialContext
	}
	raw, err := dialRaw(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	keepAlive(raw)
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { raw.Close(); close(cut) })
	c, err := awaitAdmission(tls.Client(raw, config))
	if !stop() {
		<-cut
		return nil, fmt.Errorf("%w: %w", errMute, ctx.Err())
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	d.keep(c)
	if base, err := Load(d.TLS); err == nil {
		if chains, err := verifyServer(base, c.ConnectionState().PeerCertificates); err == nil {
			c.endWith(chains)
		}
	}
	return c, nil
}

// keepAlive has the kernel find out, within half a minute, that the other side of a TCP connection is gone.
func keepAlive(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3})
	}
}

// awaitAdmission does the handshake and waits for the first byte.
func awaitAdmission(tc *tls.Conn) (*Conn, error) {
	own := new(shown)
	if err := tc.HandshakeContext(own.note(context.Background())); err != nil { // the dial closes what is below
		drain(tc.NetConn())
		return nil, err
	}
	var b [1]byte
	if _, err := tc.Read(b[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotAdmitted, err)
	}
	if b[0] != admitted {
		return nil, fmt.Errorf("%w: unexpected first byte %#02x", errNotAdmitted, b[0])
	}
	id, err := ParseIdentity(tc.ConnectionState().PeerCertificates[0]) // ClientConfig verified it
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: tc, peer: id, shown: own, dialled: true}, nil
}

// drain ends this side of a connection and reads on for a while, to the end of the other side. Closing it while
// bytes are unread would reset the connection, and the reset may overtake the alert that says why.
func drain(raw net.Conn) {
	const longest = time.Second
	if w, ok := raw.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		raw.SetReadDeadline(time.Now().Add(longest))
		io.CopyN(io.Discard, raw, MaxMessage)
	}
}

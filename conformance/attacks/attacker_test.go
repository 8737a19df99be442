package attacks

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// addresses is how many the attacker has.
const addresses = 50

// dial connects from one of the attacker's addresses.
func dial(ctx context.Context, from int, to string) (net.Conn, error) {
	local := &net.TCPAddr{IP: net.IPv4(127, 0, 9, byte(1+from%addresses))}
	return (&net.Dialer{LocalAddr: local, Timeout: 5 * time.Second}).DialContext(ctx, "tcp", to)
}

// presenting is what a client says that presents a certificate, whatever the server asks for.
func presenting(conf *tls.Config, alpn ...string) *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true, NextProtos: alpn}
	if conf != nil {
		cert := conf.Certificates[0]
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return c
}

// crowd is many clients at a time.
type crowd struct {
	dials int // at least, at the rate
	rate  int // dials a second, to all servers together
	// after is how many dials a second follow, while rotations are measured: that is to find what the crowd
	// holds up, and not what its handshakes cost the processors.
	after int
	// held is how many connections there are at a time at most: as many as the servers' caps allow for such a
	// crowd, and those that have just dialled or have not seen yet that they are cut off, which who
	// trickles sees within a second. Zero means that this is not looked at.
	held int
	// act is what each does with its connection. When it returns, it dials again.
	act func(ctx context.Context, i int, c net.Conn)
}

// attack has the crowd at all servers, until it has dialled often enough, and long enough, and what comes
// after that is done. When it returns, all have gone.
func (c *cluster) attack(t *testing.T, w crowd, after func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var dials, open, most atomic.Int64
	turns, enough := make(chan struct{}), make(chan struct{})
	ticks := time.NewTicker(time.Second / time.Duration(w.rate))
	defer ticks.Stop()
	var wg sync.WaitGroup
	wg.Go(func() { giveTurns(ctx, turns, ticks.C) })
	for i := range many {
		wg.Go(func() {
			for {
				select {
				case <-turns:
				case <-ctx.Done():
					return
				}
				conn, err := dial(ctx, i, c.honest[i%len(c.honest)].addr)
				if err != nil {
					continue
				}
				if dials.Add(1) == int64(w.dials) {
					close(enough)
				}
				most.Store(max(most.Load(), open.Add(1))) // it is a figure for the log
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				w.act(ctx, i, conn)
				stop()
				conn.Close()
				open.Add(-1)
			}
		})
	}
	<-time.After(*attackTime)
	select {
	case <-enough:
	case <-time.After(time.Minute):
		t.Errorf("in a minute the crowd gets to %d dials, %d are wanted", dials.Load(), w.dials)
	}
	ticks.Reset(time.Second / time.Duration(w.after))
	after()
	cancel()
	wg.Wait()
	c.dials += int(dials.Load())
	if w.held > 0 && *atOnce == 0 && int(most.Load()) > w.held {
		t.Errorf("up to %d connections at a time, at most %d are fine", most.Load(), w.held)
	}
	t.Logf("%d connections, up to %d at a time", dials.Load(), most.Load())
}

// giveTurns has all dial that are to do so at once, and then one a tick, if one is free.
func giveTurns(ctx context.Context, turns chan<- struct{}, ticks <-chan time.Time) {
	for range *atOnce {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
	for {
		select {
		case <-ticks:
		case <-ctx.Done():
			return
		}
		select {
		case turns <- struct{}{}:
		default: // all have their connections
		}
	}
}

// membersGetIn dials as a member on both protocols, from a member's address.
func (c *cluster) membersGetIn(t *testing.T) {
	t.Helper()
	for i, p := range c.honest {
		other := c.honest[(i+1)%len(c.honest)]
		d := &peer.Dialer{Cluster: clusterName, TLS: c.source(string(other.id))}
		for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer} {
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			conn, err := d.Dial(ctx, string(p.id), p.addr, alpn)
			if cancel(); err != nil {
				t.Errorf("%s is not let in by %s: %v", other.id, p.id, err)
				continue
			}
			conn.Close()
			if took := time.Since(began); took > time.Second {
				t.Logf("%s was let in by %s after %v, on %s", other.id, p.id, took, alpn)
			}
		}
	}
}

// admitted shakes hands and reports whether the server's first byte says that it has let the client in.
func admitted(c net.Conn, conf *tls.Config) (*tls.Conn, error) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	tc := tls.Client(c, conf)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	var b [1]byte
	if _, err := tc.Read(b[:]); err != nil {
		return nil, err
	}
	if b[0] != 1 {
		return nil, fmt.Errorf("first byte %#02x", b[0])
	}
	c.SetDeadline(time.Time{})
	return tc, nil
}

package peer_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// wantCut waits until a connection is closed, and wants that to be at a time, or later by little.
func wantCut(t *testing.T, what string, c net.Conn, at time.Time) {
	t.Helper()
	c.SetReadDeadline(at.Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: it is open still: %v", what, err)
	}
	if early := time.Until(at); early > 0 {
		t.Errorf("%s: it is closed %v early", what, early)
	}
}

// TestConnectionEndsWithTheCertificatesOfBothEnds, on the end whose own has ended and on the other.
func TestConnectionEndsWithTheCertificatesOfBothEnds(t *testing.T) {
	for _, short := range []string{"server", "client"} {
		t.Run(short, func(t *testing.T) {
			t.Parallel()
			a := newCA(t)
			end := time.Now().Add(3 * time.Second).Truncate(time.Second)
			brief := func(c *x509.Certificate) { c.NotAfter = end }
			sources := map[string]peer.Source{"server": a.source("s1"), "client": a.source("s2")}
			sources[short] = a.with(a.issue([]string{serverURI(map[string]string{"server": "s1", "client": "s2"}[short])}, brief))
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, sources["server"], everybody)})
			defer p.Close()
			accepted := p.Listener(peer.ALPNRaft)
			d := &peer.Dialer{Cluster: cluster, TLS: sources["client"]}
			dialled := make(chan *peer.Conn, 1)
			go func() {
				c, err := d.Dial(t.Context(), "s1", ln.Addr().String(), peer.ALPNRaft)
				if err != nil {
					t.Error(err)
				}
				dialled <- c
			}()
			in, err := accepted.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			out := <-dialled
			if out == nil {
				return
			}
			defer out.Close()
			wantCut(t, "dialled", out, end)
			wantCut(t, "accepted", in, end)
		})
	}
}

// TestRecheckClosesConnectionsThatTheCAsDoNotVouchFor, and nobody else.
func TestRecheckClosesConnectionsThatTheCAsDoNotVouchFor(t *testing.T) {
	a, other := newCA(t), newCA(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("s1"), everybody)})
	defer p.Close()
	accepted := p.Listener(peer.ALPNRaft)
	now := a.source("s2")
	d := &peer.Dialer{Cluster: cluster, TLS: func() (*tls.Config, error) { return now() }}
	connect := func() (out *peer.Conn, in net.Conn) {
		done := make(chan error, 1)
		go func() {
			var err error
			out, err = d.Dial(t.Context(), "s1", ln.Addr().String(), peer.ALPNRaft)
			done <- err
		}()
		in, err := accepted.Accept()
		if err := errors.Join(err, <-done); err != nil {
			t.Fatal(err)
		}
		return out, in
	}
	stays := func(c net.Conn) {
		t.Helper()
		c.SetReadDeadline(time.Now())
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it is closed: %v", err)
		}
		c.SetReadDeadline(time.Time{})
	}
	out, in := connect()
	if err := errors.Join(p.Recheck(a.source("s1")), d.Recheck()); err != nil {
		t.Fatal(err)
	}
	stays(out)
	stays(in)
	if err := p.Recheck(other.source("s1")); err != nil {
		t.Fatal(err)
	}
	wantCut(t, "accepted", in, time.Time{})
	out, in = connect()
	now = other.source("s2")
	if err := d.Recheck(); err != nil {
		t.Fatal(err)
	}
	wantCut(t, "dialled", out, time.Time{})
	in.Close()
}

// TestRecheckAsksTheHostsHooks: a certificate that the host has revoked since then counts no longer, on either end.
func TestRecheckAsksTheHostsHooks(t *testing.T) {
	a := newCA(t)
	revoked := errors.New("revoked")
	hooks := map[string]func(*tls.Config){
		"VerifyPeerCertificate": func(c *tls.Config) {
			c.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
				if len(raw) == 0 || len(chains) == 0 {
					t.Error("it is asked about no certificate")
				}
				return revoked
			}
		},
		"VerifyConnection": func(c *tls.Config) { c.VerifyConnection = func(tls.ConnectionState) error { return revoked } },
	}
	for name, hook := range hooks {
		refusing := func(id string) peer.Source {
			return func() (*tls.Config, error) {
				c, err := a.source(id)()
				hook(c)
				return c, err
			}
		}
		p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("s1"), everybody)})
		defer p.Close()
		accepted := p.Listener(peer.ALPNRaft)
		now := a.source("s2")
		d := &peer.Dialer{Cluster: cluster, TLS: func() (*tls.Config, error) { return now() }}
		for _, end := range []string{"accepted", "dialled"} {
			now = a.source("s2")
			ins := make(chan net.Conn, 1)
			go func() {
				in, _ := accepted.Accept()
				ins <- in
			}()
			out, err := d.Dial(t.Context(), "s1", p.Addr().String(), peer.ALPNRaft)
			if err != nil {
				t.Fatal(err)
			}
			c := map[string]net.Conn{"dialled": out, "accepted": <-ins}[end]
			if now = refusing("s2"); end == "accepted" {
				err = p.Recheck(refusing("s1"))
			} else {
				err = d.Recheck()
			}
			if err != nil {
				t.Fatal(err)
			}
			wantCut(t, name+", "+end, c, time.Time{})
			out.Close()
		}
	}
}

// TestNoTimerOutlivesItsConnection: not the one that takes the place of another because the clock was set back,
// and none that comes once the connection is closed.
func TestNoTimerOutlivesItsConnection(t *testing.T) {
	a := newCA(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("s1"), everybody)})
	defer p.Close()
	d := &peer.Dialer{Cluster: cluster, TLS: a.source("s2")}
	accepted := p.Listener(peer.ALPNRaft)
	go func() {
		if c, err := accepted.Accept(); err == nil {
			defer c.Close()
			c.Read(make([]byte, 1))
		}
	}()
	c, err := d.Dial(t.Context(), "s1", ln.Addr().String(), peer.ALPNRaft)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first := peer.TimerOf(c)
	peer.Expire(c) // before its time, as when the clock was set back
	second := peer.TimerOf(c)
	if first == nil || second == nil || second == first {
		t.Errorf("timers %p and %p", first, second)
	}
	c.Close()
	if second != nil && second.Stop() {
		t.Error("the second timer was left")
	}
	peer.EndWith(c, [][]*x509.Certificate{{{NotAfter: time.Now().Add(time.Hour)}}})
	peer.Expire(c)
	if peer.TimerOf(c) != nil {
		t.Error("it waits for the end of what is closed")
	}
}

// TestEndingsAreThoseThatWereShownLast: a server whose certificate was replaced has older connections still. One that was hung up
// tells nothing.
func TestEndingsAreThoseThatWereShownLast(t *testing.T) {
	a := newCA(t)
	ends := func(in time.Duration) (peer.Source, time.Time) {
		end := time.Now().Add(in).UTC().Truncate(time.Second)
		return a.with(a.issue([]string{serverURI("s1")}, func(c *x509.Certificate) { c.NotAfter = end })), end
	}
	now, first := ends(10 * time.Hour)
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, func() (*tls.Config, error) { return now() }, everybody)})
	defer p.Close()
	drainTo(p.Listener(peer.ALPNRaft))
	d := &peer.Dialer{Cluster: cluster, TLS: a.source("s2")}
	dial := func() *peer.Conn {
		c, err := d.Dial(t.Context(), "s1", p.Addr().String(), peer.ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	want := func(what string, until time.Time) {
		t.Helper()
		if got := d.PeerEndings()["s1"].Until; !got.Equal(until) {
			t.Errorf("%s: it ends at %v, want %v", what, got, until)
		}
	}
	want("never dialled", time.Time{})
	defer dial().Close()
	want("first", first)
	var second time.Time
	now, second = ends(time.Hour)
	c := dial()
	if got := c.PeerEnding().Until; !got.Equal(second) {
		t.Errorf("the connection ends at %v, want %v", got, second)
	}
	want("replaced", second)
	c.Close()
	want("the newer connection was closed", first)
}

package peer_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
)

// never is a deadline that no test waits for: what would wait for it hangs the test.
const never = time.Hour

func dialPort(t *testing.T, a *ca, id string, p *peer.Port, alpn string) (*peer.Conn, error) {
	t.Helper()
	d := &peer.Dialer{Cluster: cluster, TLS: a.source(id)}
	return d.Dial(t.Context(), "a", p.Addr().String(), alpn)
}

// silent is a TCP connection that says nothing.
func silent(t *testing.T, p *peer.Port) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPortRoutesByProtocol(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody)})
	for alpn, id := range map[string]string{peer.ALPNRaft: "b", peer.ALPNPeer: "c"} {
		s := drainTo(p.Listener(alpn))
		c, err := dialPort(t, a, id, p, alpn)
		if err != nil {
			t.Fatal(err)
		}
		there := <-s.conns
		if there.Identity() != (peer.Identity{Cluster: cluster, Role: "server", ID: id}) || c.Identity().ID != "a" {
			t.Errorf("%s: %s talks to %s", alpn, there.Identity(), c.Identity())
		}
		go func() { io.WriteString(c, "ping"); c.Close() }()
		if b, err := io.ReadAll(there); string(b) != "ping" || err != nil {
			t.Errorf("%s: %q, %v", alpn, b, err)
		}
		there.Close()
	}
	p.Close()
}

func TestPortRefusesAProtocolWithoutListener(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	told := make(refusals, 10)
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody), OnRefuse: told.note})
	closed := p.Listener(peer.ALPNPeer)
	closed.Close()
	for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer} {
		if _, err := dialPort(t, a, "b", p, alpn); err == nil {
			t.Errorf("%s: admitted", alpn)
		}
		if err := <-told; !strings.Contains(err.Error(), "nobody listens") {
			t.Errorf("%s: %v", alpn, err)
		}
	}
	p.Close()
	for _, l := range []net.Listener{closed, p.Listener(peer.ALPNRaft), p.Listener("other")} {
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
	}
}

// A TLS configuration that lets anybody in, by mistake, still routes nobody.
func TestPortRoutesVerifiedConnectionsOnly(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	told := make(refusals, 10)
	p := peer.Listen(loopback(t), peer.PortOptions{OnRefuse: told.note, TLS: &tls.Config{
		Certificates: []tls.Certificate{a.issue([]string{serverURI("a")})},
		NextProtos:   []string{peer.ALPNRaft}, ClientAuth: tls.RequireAnyClientCert,
	}})
	s := drainTo(p.Listener(peer.ALPNRaft))
	if _, err := dialPort(t, newCA(t), "b", p, peer.ALPNRaft); err == nil {
		t.Error("admitted")
	}
	<-told
	if _, err := dialPort(t, a, "b", p, peer.ALPNRaft); err == nil {
		t.Error("admitted")
	}
	if err := <-told; !strings.Contains(err.Error(), "no verified certificate") {
		t.Error(err)
	}
	p.Close()
	if n := len(s.accepted()); n > 0 {
		t.Errorf("%d routed", n)
	}
}

func TestSilentPeersDelayNobody(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	p := peer.Listen(loopback(t), peer.PortOptions{
		TLS: serverConfig(t, a.source("a"), everybody), Handshake: never, MaxPending: 8,
	})
	s := drainTo(p.Listener(peer.ALPNRaft))
	for range 5 {
		for range 20 {
			c := silent(t, p)
			defer c.Close()
			if _, err := c.Write([]byte{22, 3, 1}); err != nil {
				continue // cut off already
			}
		}
		c, err := dialPort(t, a, "b", p, peer.ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer (<-s.conns).Close()
	}
	p.Close()
}

func TestOldestHandshakeGivesWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, ln, told := newCA(t), newPipes(), make(refusals, 10)
		p := peer.Listen(ln, peer.PortOptions{
			TLS: serverConfig(t, a.source("a"), everybody), MaxPending: 2, OnRefuse: told.note,
		})
		var conns []net.Conn
		for range 3 {
			c, err := ln.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			synctest.Wait()
		}
		ended(t, conns[0])
		if err := <-told; !strings.Contains(err.Error(), "cut off before its handshake") {
			t.Error(err)
		}
		if len(told) > 0 {
			t.Errorf("also: %v", <-told)
		}
		p.Close()
		ended(t, conns[1])
		ended(t, conns[2])
		if len(told) > 0 {
			t.Errorf("Close is told: %v", <-told)
		}
	})
}

func TestConnectionsAreCapped(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	told := make(refusals, 10)
	p := peer.Listen(loopback(t), peer.PortOptions{
		TLS: serverConfig(t, a.source("a"), everybody), MaxConns: 2, OnRefuse: told.note,
	})
	s := drainTo(p.Listener(peer.ALPNRaft))
	for _, id := range []string{"b", "c"} {
		c, err := dialPort(t, a, id, p, peer.ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := dialPort(t, a, "d", p, peer.ALPNRaft); err == nil || !strings.Contains(err.Error(), "not admitted") {
		t.Errorf("the third: %v", err)
	}
	if err := <-told; !strings.Contains(err.Error(), "keyring://prod-1/server/d: too many connections") {
		t.Error(err)
	}
	first := <-s.conns
	first.Close()
	first.Close() // gives one place back
	c, err := dialPort(t, a, "d", p, peer.ALPNRaft)
	if err != nil {
		t.Fatalf("after one is closed: %v", err)
	}
	defer c.Close()
	if _, err := dialPort(t, a, "e", p, peer.ALPNRaft); err == nil {
		t.Error("two places for one close")
	}
	p.Close()
}

func TestHandshakeDeadline(t *testing.T) {
	t.Parallel()
	for name, first := range map[string][]byte{
		"silent":      nil,
		"half header": {22, 3},
		"half hello":  {22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, ln, told := newCA(t), newPipes(), make(refusals, 10)
			p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody), OnRefuse: told.note})
			start := time.Now()
			c, err := ln.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			c.Write(first)
			ended(t, c)
			if took := time.Since(start); took != peer.DefaultTimeout {
				t.Errorf("%s: closed after %v", name, took)
			}
			if err := <-told; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
			p.Close()
		})
	}
}

func TestConnectionThatNobodyTakesIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, ln, told := newCA(t), newPipes(), make(refusals, 10)
		p := peer.Listen(ln, peer.PortOptions{
			TLS: serverConfig(t, a.source("a"), everybody), Handshake: 3 * time.Second, OnRefuse: told.note,
		})
		p.Listener(peer.ALPNRaft)
		d := &peer.Dialer{Cluster: cluster, TLS: a.source("b"), DialContext: ln.DialContext}
		start := time.Now()
		c, err := d.Dial(t.Context(), "a", "pipe", peer.ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		ended(t, c)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("after %v", took)
		}
		if err := <-told; !strings.Contains(err.Error(), "nobody listens") {
			t.Error(err)
		}
		p.Close()
	})
}

func TestAdmittedConnectionHasNoDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, ln := newCA(t), newPipes()
		p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody)})
		s := drainTo(p.Listener(peer.ALPNRaft))
		d := &peer.Dialer{Cluster: cluster, TLS: a.source("b"), DialContext: ln.DialContext}
		c, err := d.Dial(t.Context(), "a", "pipe", peer.ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		there := <-s.conns
		time.AfterFunc(24*time.Hour, func() { io.WriteString(c, "x") })
		if _, err := io.ReadFull(there, make([]byte, 1)); err != nil {
			t.Errorf("a day later: %v", err)
		}
		p.Close()
	})
}

func TestDialDeadline(t *testing.T) {
	t.Parallel()
	for name, shake := range map[string]bool{"silent": false, "never admits": true} {
		synctest.Test(t, func(t *testing.T) {
			a, ln := newCA(t), newPipes()
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				if shake {
					tls.Server(c, serverConfig(t, a.source("a"), everybody)).Handshake()
				}
				io.Copy(io.Discard, c)
			}()
			d := &peer.Dialer{Cluster: cluster, TLS: a.source("b"), DialContext: ln.DialContext}
			start := time.Now()
			_, err := d.Dial(t.Context(), "a", "pipe", peer.ALPNRaft)
			if took := time.Since(start); took != peer.DefaultTimeout || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v after %v", name, err, took)
			}

			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if _, err = d.Dial(ctx, "a", "pipe", peer.ALPNRaft); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: cancelled: %v", name, err)
			}
		})
	}
}

// pipeServers listen at addresses of pipes: two are a's, one is another's.
func pipeServers(t *testing.T, a *ca) map[string]*pipes {
	servers := map[string]*pipes{}
	for addr, id := range map[string]string{"up": "a", "up, too": "a", "another's": "z"} {
		servers[addr] = newPipes()
		p := peer.Listen(servers[addr], peer.PortOptions{TLS: serverConfig(t, a.source(id), everybody)})
		t.Cleanup(func() { p.Close() })
		drainTo(p.Listener(peer.ALPNRaft))
	}
	return servers
}

// TestDialLooksElsewhere when nobody answers at the address, or not at once.
func TestDialLooksElsewhere(t *testing.T) {
	t.Parallel()
	const late = 250 * time.Millisecond
	for name, tt := range map[string]struct {
		addr   string
		others []string
		took   time.Duration
		dialed []string
	}{
		"it is there":     {"up", []string{"up, too"}, 0, []string{"up"}},
		"nobody there":    {"down", []string{"up"}, 0, []string{"down", "up"}},
		"it hangs":        {"hangs", []string{"up"}, late, []string{"hangs", "up"}},
		"all but one":     {"hangs", []string{"hangs, too", "down", "up"}, 2 * late, []string{"hangs", "hangs, too", "down", "up"}},
		"another's":       {"another's", []string{"up"}, late, []string{"another's", "up"}}, // a pipe buffers no alert
		"nowhere":         {"down", []string{"down, too"}, 0, []string{"down", "down, too"}},
		"nowhere in time": {"hangs", []string{"down"}, peer.DefaultTimeout, []string{"hangs", "down"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newCA(t)
			servers := pipeServers(t, a)
			var mu sync.Mutex // guards dialed
			var dialed []string
			d := &peer.Dialer{Cluster: cluster, TLS: a.source("b"),
				Elsewhere: func(server, addr string) []string {
					if server != "a" || addr != tt.addr {
						t.Errorf("%s: asked for %q, %q", name, server, addr)
					}
					return tt.others
				},
				DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
					mu.Lock()
					dialed = append(dialed, addr)
					mu.Unlock()
					if ln := servers[addr]; ln != nil {
						return ln.DialContext(ctx, "", "")
					}
					if strings.HasPrefix(addr, "hangs") {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return nil, errors.New("refused")
				}}
			start := time.Now()
			c, err := d.Dial(t.Context(), "a", tt.addr, peer.ALPNRaft)
			if took := time.Since(start); took != tt.took || !slices.Equal(dialed, tt.dialed) {
				t.Errorf("%s: %q in %v, want %q in %v", name, dialed, took, tt.dialed, tt.took)
			}
			if found := slices.Contains(tt.dialed, "up"); found != (err == nil) {
				t.Errorf("%s: %v", name, err)
			} else if !found && (!strings.Contains(err.Error(), tt.addr) || !strings.Contains(err.Error(), tt.others[0])) {
				t.Errorf("%s: the error does not tell of each: %v", name, err)
			}
			if err == nil {
				c.Close()
			}
		})
	}
}

func TestDropCutsThoseWhoAreGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, ln := newCA(t), newPipes()
		p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody)})
		s := drainTo(p.Listener(peer.ALPNRaft))
		conns := map[string]*peer.Conn{}
		for _, id := range []string{"b", "c"} {
			d := &peer.Dialer{Cluster: cluster, TLS: a.source(id), DialContext: ln.DialContext}
			c, err := d.Dial(t.Context(), "a", "pipe", peer.ALPNRaft)
			if err != nil {
				t.Fatal(err)
			}
			conns[id] = c
		}

		p.Drop(func(id peer.Identity) bool { return id.ID == "b" })
		ended(t, conns["b"])
		stays := <-s.conns
		if stays.Identity().ID == "b" {
			stays = <-s.conns
		}
		go io.WriteString(conns["c"], "x")
		if _, err := io.ReadFull(stays, make([]byte, 1)); err != nil {
			t.Errorf("who stays: %v", err)
		}
		p.Close()
		ended(t, conns["c"])
	})
}

// slow is a connection that sends nothing before it is told to.
type slow struct {
	net.Conn
	wait <-chan struct{}
}

func (s *slow) Write(b []byte) (int, error) {
	<-s.wait
	return s.Conn.Write(b)
}

// TestDropCutsThoseWhoAreGoneInTheirHandshake, and nobody else: who calls has done nothing wrong.
func TestDropCutsThoseWhoAreGoneInTheirHandshake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, ln, told, begin := newCA(t), newPipes(), make(refusals, 10), make(chan struct{})
		p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody), OnRefuse: told.note})
		drainTo(p.Listener(peer.ALPNRaft))
		dialed := map[string]chan error{"b": make(chan error), "c": make(chan error)}
		for id, done := range dialed {
			d := &peer.Dialer{Cluster: cluster, TLS: a.source(id), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := ln.DialContext(ctx, "", "")
				return &slow{c, begin}, err
			}}
			go func() {
				_, err := d.Dial(t.Context(), "a", "pipe", peer.ALPNRaft)
				done <- err
			}()
		}
		synctest.Wait()
		p.Drop(func(id peer.Identity) bool { return id.ID == "b" })
		p.Drop(func(peer.Identity) bool { return false })
		close(begin)
		if err := <-dialed["b"]; err == nil {
			t.Error("who is gone is admitted")
		}
		if err := <-dialed["c"]; err != nil {
			t.Errorf("who stays: %v", err)
		}
		if err := <-told; !strings.Contains(err.Error(), "the members changed during its handshake") || len(told) > 0 {
			t.Errorf("%v, and %d more", err, len(told))
		}
		p.Close()
	})
}

// The accept that fails is no reason to stop.
type flaky struct {
	*pipes
	errs chan error
}

func (f *flaky) Accept() (net.Conn, error) {
	select {
	case err := <-f.errs:
		return nil, err
	default:
		return f.pipes.Accept()
	}
}

func TestAcceptErrorsPass(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, told := newCA(t), make(refusals, 11)
		ln := &flaky{newPipes(), make(chan error, 10)}
		for range 10 {
			ln.errs <- errors.New("too many open files")
		}
		start := time.Now()
		p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody), OnRefuse: told.note})
		drainTo(p.Listener(peer.ALPNRaft))
		d := &peer.Dialer{Cluster: cluster, TLS: a.source("b"), DialContext: ln.DialContext}
		if _, err := d.Dial(t.Context(), "a", "pipe", peer.ALPNRaft); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); len(told) != 10 || took > 10*time.Second || took < time.Second {
			t.Errorf("%d errors in %v", len(told), took)
		}
		ln.errs <- errors.New("too many open files")
		p.Close()
		p.Close()
	})
}

// In a bubble that has ended no goroutine is left.
func TestPortCloseEndsEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, ln := newCA(t), newPipes()
		p := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody), Handshake: never})
		s := drainTo(p.Listener(peer.ALPNRaft))
		p.Listener(peer.ALPNPeer) // accepts nothing
		var conns []net.Conn
		for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer, peer.ALPNRaft} {
			d := &peer.Dialer{Cluster: cluster, TLS: a.source("b"), DialContext: ln.DialContext}
			c, err := d.Dial(t.Context(), "a", "pipe", alpn)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		for _, first := range [][]byte{nil, {22, 3, 1}} {
			c, err := ln.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			c.Write(first)
			conns = append(conns, c)
		}
		synctest.Wait()
		start := time.Now()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("Close took %v", took)
		}
		for _, c := range conns {
			ended(t, c)
		}
		if n := len(s.accepted()); n != 2 {
			t.Errorf("%d accepted", n)
		}
		if _, err := ln.DialContext(t.Context(), "", ""); err == nil {
			t.Error("still listens")
		}
	})
}

func TestPortCloseOnSockets(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("a"), everybody), Handshake: never})
	s := drainTo(p.Listener(peer.ALPNRaft))
	for range 10 {
		defer silent(t, p).Close()
		c, err := dialPort(t, a, "b", p, peer.ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		defer ended(t, c)
		<-s.conns
	}
	p.Close()
}

package peer_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// badCerts are certificates that neither side accepts of the other, and what the side that
// refuses says.
func badCerts(a, foreign *ca) map[string]struct {
	cert tls.Certificate
	want string
} {
	change := func(f func(*x509.Certificate)) tls.Certificate { return a.issue([]string{serverURI("b")}, f) }
	return map[string]struct {
		cert tls.Certificate
		want string
	}{
		"foreign CA":    {foreign.issue([]string{serverURI("b")}), "unknown authority"},
		"expired":       {change(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired"},
		"not yet valid": {change(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not yet valid"},
		"no key usage": {change(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}), "incompatible key usage"},
		"client role":   {a.issue([]string{"keyring://" + cluster + "/client/b"}), `keyring://prod-1/client/b: role "client", want "server"`},
		"other cluster": {a.issue([]string{"keyring://other/server/b"}), `cluster "other", want "prod-1"`},
		"two URIs":      {a.issue([]string{serverURI("b"), serverURI("c")}), "2 keyring URIs, want 1"},
		"no URI":        {a.issue(nil), "0 keyring URIs, want 1"},
		"odd URI":       {a.issue([]string{serverURI("b") + "?x"}), "canonical"},
	}
}

// refuser is a port of the good server "a", which refuses everybody it should.
type refuser struct {
	*peer.Port
	told  refusals
	sinks []*sink
}

func newRefuser(t *testing.T, s peer.Source, check func(peer.Identity, string) error) *refuser {
	noLeak(t)
	r := &refuser{told: make(refusals, 10)}
	r.Port = peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, s, check), OnRefuse: r.told.note})
	for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer} {
		r.sinks = append(r.sinks, drainTo(r.Listener(alpn)))
	}
	return r
}

// check wants a refusal that says so, and nothing routed.
func (r *refuser) check(t *testing.T, want string) {
	t.Helper()
	if err := <-r.told; !strings.Contains(err.Error(), want) {
		t.Errorf("the port refuses with %q, want %q", err, want)
	}
	r.Close()
	for _, s := range r.sinks {
		if len(s.accepted()) > 0 {
			t.Error("the connection is routed")
		}
	}
}

func TestPortRefusesCertificates(t *testing.T) {
	a, foreign := newCA(t), newCA(t)
	for name, tt := range badCerts(a, foreign) {
		t.Run(name, func(t *testing.T) {
			r := newRefuser(t, a.source("a"), everybody)
			d := &peer.Dialer{Cluster: cluster, TLS: a.with(tt.cert)}
			_, err := d.Dial(t.Context(), "a", r.Addr().String(), peer.ALPNRaft)
			if err == nil || !strings.HasPrefix(err.Error(), `dial server "a" at 127.0.0.1:`) || !strings.Contains(err.Error(), "tls: ") {
				t.Errorf("dial: %v, want the alert", err)
			}
			r.check(t, tt.want)
		})
	}
}

func TestPortRefusesServersThatCheckRefuses(t *testing.T) {
	a := newCA(t)
	r := newRefuser(t, a.source("a"), func(id peer.Identity, alpn string) error {
		if want := (peer.Identity{Cluster: cluster, Role: "server", ID: "b"}); id != want || alpn != peer.ALPNPeer {
			t.Errorf("asked about %s, %s", id, alpn)
		}
		return errors.New("not a member")
	})
	d := &peer.Dialer{Cluster: cluster, TLS: a.source("b")}
	if _, err := d.Dial(t.Context(), "a", r.Addr().String(), peer.ALPNPeer); err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("dial: %v", err)
	}
	r.check(t, "certificate of keyring://prod-1/server/b: not a member")
}

// Those that don't even look like a server.
func TestPortRefusesClients(t *testing.T) {
	a := newCA(t)
	good := a.issue([]string{serverURI("b")})
	client := func(c *tls.Config) func(net.Conn) net.Conn {
		c.InsecureSkipVerify = true
		return func(raw net.Conn) net.Conn { return tls.Client(raw, c) }
	}
	for name, tt := range map[string]struct {
		wrap func(net.Conn) net.Conn
		want string
	}{
		"plaintext":      {func(c net.Conn) net.Conn { return c }, "does not look like a TLS handshake"},
		"no certificate": {client(&tls.Config{NextProtos: []string{peer.ALPNPeer}}), "didn't provide a certificate"},
		"TLS 1.2": {client(&tls.Config{
			NextProtos: []string{peer.ALPNPeer}, Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12,
		}), "unsupported versions"},
		"no ALPN":      {client(&tls.Config{Certificates: []tls.Certificate{good}}), "asks for no protocol"},
		"unknown ALPN": {client(&tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{good}}), "unsupported application protocols"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRefuser(t, a.source("a"), everybody)
			raw, err := net.Dial("tcp", r.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c := tt.wrap(raw)
			c.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n")) // nothing of this may arrive
			if tc, ok := c.(*tls.Conn); ok {
				ended(t, tc)
			}
			raw.Close()
			r.check(t, tt.want)
		})
	}
}

// dialled is what a server that is not ours gets from a Dialer.
type dialled struct {
	bytes     []byte
	handshake error
}

// impostor accepts one connection.
func impostor(t *testing.T, serve func(net.Conn) net.Conn) (addr string, result chan dialled) {
	ln := loopback(t)
	result = make(chan dialled, 1)
	go func() {
		defer ln.Close()
		raw, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer raw.Close()
		c := serve(raw)
		var r dialled
		if tc, ok := c.(*tls.Conn); ok {
			if r.handshake = tc.Handshake(); r.handshake == nil {
				tc.Write([]byte{1})
			}
			r.bytes, _ = io.ReadAll(tc)
		}
		result <- r
	}()
	return ln.Addr().String(), result
}

func dialError(t *testing.T, s peer.Source, addr, want string) {
	t.Helper()
	dialErrorFor(t, s, "b", addr, want)
}

func dialErrorFor(t *testing.T, s peer.Source, server, addr, want string) {
	t.Helper()
	d := &peer.Dialer{Cluster: cluster, TLS: s}
	c, err := d.Dial(t.Context(), server, addr, peer.ALPNRaft)
	if err == nil {
		c.Close()
	}
	if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("dial server %q at %s", server, addr)) || !strings.Contains(err.Error(), want) {
		t.Errorf("dial: %v, want %q", err, want)
	}
}

func TestDialRefusesCertificates(t *testing.T) {
	a, foreign := newCA(t), newCA(t)
	cases := badCerts(a, foreign)
	other := cases["no URI"]
	other.cert, other.want = a.issue([]string{serverURI("c")}), `certificate of keyring://prod-1/server/c: server "c", want "b"`
	cases["other ID"] = other
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			addr, result := impostor(t, func(c net.Conn) net.Conn {
				return tls.Server(c, &tls.Config{
					Certificates: []tls.Certificate{tt.cert}, NextProtos: []string{peer.ALPNRaft},
					ClientAuth: tls.RequireAnyClientCert,
				})
			})
			dialError(t, a.source("a"), addr, tt.want)
			r := <-result
			if r.handshake == nil || !strings.Contains(r.handshake.Error(), "remote error: tls: ") {
				t.Errorf("the server is told %v, want an alert", r.handshake)
			}
			if len(r.bytes) > 0 {
				t.Errorf("the server gets %q", r.bytes)
			}
		})
	}
}

// Without an ID to compare, all the other checks stay.
func TestDialAnyServerOfTheCluster(t *testing.T) {
	a, foreign := newCA(t), newCA(t)
	for name, tt := range badCerts(a, foreign) {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			addr, result := impostor(t, func(c net.Conn) net.Conn {
				return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{tt.cert}, NextProtos: []string{peer.ALPNRaft}})
			})
			dialErrorFor(t, a.source("a"), "", addr, tt.want)
			<-result
		})
	}
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("b"), everybody)})
	defer p.Close()
	p.Listener(peer.ALPNRaft)
	d := &peer.Dialer{Cluster: cluster, TLS: a.source("a")}
	c, err := d.Dial(t.Context(), "", p.Addr().String(), peer.ALPNRaft)
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity().ID != "b" {
		t.Errorf("dialled %s", c.Identity())
	}
	c.Close()
}

func TestDialRefusesServers(t *testing.T) {
	a := newCA(t)
	good := []tls.Certificate{a.issue([]string{serverURI("b")})}
	server := func(c *tls.Config) func(net.Conn) net.Conn {
		return func(raw net.Conn) net.Conn { return tls.Server(raw, c) }
	}
	for name, tt := range map[string]struct {
		serve func(net.Conn) net.Conn
		want  string
	}{
		"plaintext":      {func(c net.Conn) net.Conn { c.Write([]byte("220 mail.example.com\r\n")); return c }, "does not look like a TLS handshake"},
		"no certificate": {server(&tls.Config{}), "remote error: tls: "},
		"no ALPN":        {server(&tls.Config{Certificates: good}), "does not speak keyring-raft/1"},
		"other ALPN":     {server(&tls.Config{Certificates: good, NextProtos: []string{"h2"}}), "no application protocol"},
		"TLS 1.2":        {server(&tls.Config{Certificates: good, MaxVersion: tls.VersionTLS12}), "protocol version not supported"},
		"silent close":   {func(c net.Conn) net.Conn { c.Close(); return c }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			addr, result := impostor(t, tt.serve)
			dialError(t, a.source("a"), addr, tt.want)
			if r := <-result; len(r.bytes) > 0 {
				t.Errorf("the server gets %q", r.bytes)
			}
		})
	}
}

// A server that does without our certificate is not one of ours, and one that sends some
// other first byte neither.
func TestDialWantsToBeAdmitted(t *testing.T) {
	a := newCA(t)
	ln := loopback(t)
	defer ln.Close()
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		defer raw.Close()
		c := tls.Server(raw, serverConfig(t, a.source("b"), everybody))
		c.Write([]byte("hello"))
		io.Copy(io.Discard, c)
	}()
	dialError(t, a.source("a"), ln.Addr().String(), "not admitted: unexpected first byte 0x68")
}

func TestConfigurationsAreChecked(t *testing.T) {
	a := newCA(t)
	cert := a.issue([]string{serverURI("a")})
	for name, tt := range map[string]struct {
		base *tls.Config
		err  error
		want string
	}{
		"error":          {nil, errors.New("no such file"), "no such file"},
		"nothing":        {nil, nil, "RootCAs is required"},
		"no roots":       {&tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: a.pool()}, nil, "RootCAs is required"},
		"no certificate": {&tls.Config{RootCAs: a.pool()}, nil, "no certificate"},
	} {
		s := func() (*tls.Config, error) { return tt.base, tt.err }
		if _, err := peer.ServerConfig(s, cluster, everybody, peer.ALPNPeer); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: server: %v, want %q", name, err, tt.want)
		}
		if _, err := peer.ClientConfig(s, cluster, "b", peer.ALPNPeer); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: client: %v, want %q", name, err, tt.want)
		}
	}
}

// admit dials b from a and returns both ends.
func admit(t *testing.T, a, b peer.Source) (dialled, accepted *peer.Conn) {
	t.Helper()
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, b, everybody)})
	s := drainTo(p.Listener(peer.ALPNRaft))
	d := &peer.Dialer{Cluster: cluster, TLS: a}
	c, err := d.Dial(t.Context(), "b", p.Addr().String(), peer.ALPNRaft)
	if err != nil {
		t.Error(err)
		p.Close()
		return nil, nil
	}
	accepted = <-s.conns
	c.Close()
	p.Close()
	return c, accepted
}

func TestHostsHooksAreCalledWithChains(t *testing.T) {
	a := newCA(t)
	calls := make(chan string, 8)
	with := func(id string) peer.Source {
		cert := a.issue([]string{serverURI(id)})
		return func() (*tls.Config, error) {
			return &tls.Config{
				RootCAs: a.pool(), ClientCAs: a.pool(), InsecureSkipVerify: true, ServerName: "ignored",
				// The hook of one side serves both.
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
				VerifyPeerCertificate: func(raw [][]byte, chains [][]*x509.Certificate) error {
					if len(raw) != 1 || len(chains) != 1 || len(chains[0]) != 2 {
						t.Errorf("%d certificates, chains %v", len(raw), chains)
					}
					calls <- id + " peer"
					return nil
				},
				VerifyConnection: func(cs tls.ConnectionState) error {
					if len(cs.VerifiedChains) != 1 {
						t.Errorf("chains %v", cs.VerifiedChains)
					}
					calls <- id + " connection"
					return nil
				},
			}, nil
		}
	}
	c, s := admit(t, with("a"), with("b"))
	if c == nil {
		return
	}
	if c.Identity().ID != "b" || s.Identity().ID != "a" {
		t.Errorf("identities %s and %s", c.Identity(), s.Identity())
	}
	close(calls)
	got := map[string]int{}
	for call := range calls {
		got[call]++
	}
	if len(got) != 4 {
		t.Errorf("calls: %v", got)
	}
}

// Each direction has its roots, a chain may have an intermediate, and the host may have its
// own idea of the time.
func TestHostsChainsAndClock(t *testing.T) {
	servers, clients := newCA(t), newCA(t)
	later := func() time.Time { return time.Now().Add(10 * time.Hour) }
	afternoon := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = later().Add(-time.Minute), later().Add(time.Minute)
	}
	source := func(id string, ca *ca, usage x509.ExtKeyUsage) peer.Source {
		cert := ca.intermediate().issue([]string{serverURI(id)}, afternoon, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{usage}
		})
		return func() (*tls.Config, error) {
			return &tls.Config{
				Certificates: []tls.Certificate{cert}, Time: later,
				RootCAs: servers.pool(), ClientCAs: clients.pool(),
			}, nil
		}
	}
	a, b := source("a", clients, x509.ExtKeyUsageClientAuth), source("b", servers, x509.ExtKeyUsageServerAuth)
	if c, _ := admit(t, a, b); c != nil && c.Identity().ID != "b" {
		t.Errorf("dialled %s", c.Identity())
	}

	r := newRefuser(t, a, everybody)
	dialError(t, b, r.Addr().String(), "unknown authority")
	r.check(t, "bad certificate")
	r = newRefuser(t, b, everybody)
	dialError(t, b, r.Addr().String(), "unknown certificate authority")
	r.check(t, "unknown authority")
}

func TestHostsHooksRefuse(t *testing.T) {
	a := newCA(t)
	revoked := func(id string) peer.Source {
		cert := a.issue([]string{serverURI(id)})
		return func() (*tls.Config, error) {
			return &tls.Config{
				RootCAs: a.pool(), Certificates: []tls.Certificate{cert},
				VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return errors.New("revoked") },
			}, nil
		}
	}
	r := newRefuser(t, revoked("b"), everybody)
	dialError(t, a.source("a"), r.Addr().String(), "bad certificate")
	r.check(t, "revoked")

	r = newRefuser(t, a.source("b"), everybody)
	dialError(t, revoked("a"), r.Addr().String(), "revoked")
	r.check(t, "bad certificate")
}

func TestCertificatesReload(t *testing.T) {
	noLeak(t)
	first, second := newCA(t), newCA(t)
	current := make(chan peer.Source, 1)
	reloading := func() (*tls.Config, error) {
		s := <-current
		current <- s
		return s()
	}
	current <- first.source("b")
	var admitted int
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, reloading, everybody)})
	s := drainTo(p.Listener(peer.ALPNRaft))
	dial := func(a *ca) error {
		d := &peer.Dialer{Cluster: cluster, TLS: a.source("a")}
		c, err := d.Dial(t.Context(), "b", p.Addr().String(), peer.ALPNRaft)
		if err == nil {
			admitted++
			c.Close()
		}
		return err
	}
	if err := dial(first); err != nil {
		t.Error(err)
	}
	<-current
	current <- second.source("b")
	if err := dial(first); err == nil {
		t.Error("the first CA is good after the reload")
	}
	if err := dial(second); err != nil {
		t.Error(err)
	}
	if admitted != 2 {
		t.Errorf("%d admitted", admitted)
	}
	p.Close()
	s.accepted()
}

func TestSessionsAreNotResumed(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("b"), everybody)})
	s := drainTo(p.Listener(peer.ALPNRaft))
	config := &tls.Config{
		Certificates: []tls.Certificate{a.issue([]string{serverURI("a")})}, RootCAs: a.pool(),
		NextProtos: []string{peer.ALPNRaft}, InsecureSkipVerify: true,
		ClientSessionCache: tls.NewLRUClientSessionCache(10),
	}
	for range 3 {
		c, err := tls.Dial("tcp", p.Addr().String(), config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if c.ConnectionState().DidResume {
			t.Error("resumed")
		}
		c.Close()
	}
	p.Close()
	s.accepted()
}

// A side that refuses while bytes are unread does not reset the connection: a reset can
// overtake the alert.
func TestRefusalIsNoReset(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	chatter := func(c net.Conn) error {
		if _, err := c.Write([]byte(strings.Repeat("chatter ", 1<<16))); err != nil {
			return err
		}
		c.(*net.TCPConn).CloseWrite()
		_, err := io.Copy(io.Discard, c)
		return err
	}

	r := newRefuser(t, a.source("a"), everybody)
	c, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := chatter(c); err != nil {
		t.Errorf("port: %v", err)
	}
	c.Close()
	r.check(t, "does not look like a TLS handshake")

	errs := make(chan error, 1)
	addr, result := impostor(t, func(c net.Conn) net.Conn { errs <- chatter(c); return c })
	dialError(t, a.source("a"), addr, "does not look like a TLS handshake")
	if err := <-errs; err != nil {
		t.Errorf("dial: %v", err)
	}
	<-result
}

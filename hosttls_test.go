package keyring_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

const (
	hostCluster = "prod"
	hostALPN    = "host/1"
)

type tlsSource = func() (*tls.Config, error)

// handshakes runs server and client against each other over loopback. The client sends at once what it
// is about to say. It returns what each side makes of it, and what the server was able to read.
func handshakes(t *testing.T, server *tls.Config, client func(net.Conn) *tls.Conn) (read string, conn *tls.Conn, atServer, atClient error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()

	said := make(chan error, 1)
	go func() {
		c := client(raw)
		if c == nil {
			io.WriteString(raw, "GET / HTTP/1.1\r\n\r\n")
			said <- nil
			return
		}
		err := c.Handshake()
		if err == nil {
			io.WriteString(c, "hello")
			c.CloseWrite()
		} else {
			raw.Close()
		}
		said <- err
	}()
	conn = tls.Server(accepted, server)
	if atServer = conn.Handshake(); atServer == nil {
		b, _ := io.ReadAll(conn)
		read = string(b)
	}
	accepted.Close()
	return read, conn, atServer, <-said
}

func dialling(c *tls.Config) func(net.Conn) *tls.Conn {
	return func(raw net.Conn) *tls.Conn { return tls.Client(raw, c) }
}

func serverURI(id string) string { return "keyring://" + hostCluster + "/server/" + id }

func hostServer(t *testing.T, source tlsSource, member func(raft.ServerID) error) *tls.Config {
	t.Helper()
	conf, err := keyring.ServerTLS(source, hostCluster, member, hostALPN)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

func hostClient(t *testing.T, source tlsSource, server raft.ServerID) *tls.Config {
	t.Helper()
	conf, err := keyring.ClientTLS(source, hostCluster, server, hostALPN)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// only admits those servers.
func only(ids ...raft.ServerID) func(raft.ServerID) error {
	return func(id raft.ServerID) error {
		if !slices.Contains(ids, id) {
			return errors.New("not a member")
		}
		return nil
	}
}

// badSources are the certificates that neither side takes, and what it says of them.
func badSources(t *testing.T, ca *keyringtest.CA, id string) map[string]struct {
	source tlsSource
	want   string
} {
	return map[string]struct {
		source tlsSource
		want   string
	}{
		"foreign CA": {keyringtest.NewCA(t).Source(serverURI(id), nil), "unknown authority"},
		"expired": {ca.Source(serverURI(id), func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Minute)
		}), "expired"},
		"not yet valid": {ca.Source(serverURI(id), func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(time.Hour)
		}), "not yet valid"},
		"client role":   {ca.Source("keyring://prod/client/"+id, nil), `role "client", want "server"`},
		"other cluster": {ca.Source("keyring://other/server/"+id, nil), `cluster "other", want "prod"`},
		"no URI":        {ca.Source("https://example.com/", nil), "0 keyring URIs"},
	}
}

// careless is a client that checks nothing, with the certificate of the source, if there is one.
func careless(t *testing.T, source tlsSource, change func(*tls.Config)) func(net.Conn) *tls.Conn {
	t.Helper()
	c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{hostALPN}}
	if source != nil {
		own, err := source()
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = own.Certificates
	}
	if change != nil {
		change(c)
	}
	return dialling(c)
}

func TestServerTLSRefuses(t *testing.T) {
	ca := keyringtest.NewCA(t)
	good := ca.Source(serverURI("s2"), nil)
	type refused struct {
		client func(net.Conn) *tls.Conn
		want   string
	}
	cases := map[string]refused{
		"plaintext":      {func(net.Conn) *tls.Conn { return nil }, "does not look like a TLS handshake"},
		"no certificate": {careless(t, nil, nil), "didn't provide a certificate"},
		"not a member":   {careless(t, ca.Source(serverURI("s4"), nil), nil), "keyring://prod/server/s4: not a member"},
		"TLS 1.2":        {careless(t, good, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), "unsupported versions"},
		"no protocol":    {careless(t, good, func(c *tls.Config) { c.NextProtos = nil }), "asks for no protocol"},
		"other protocol": {careless(t, good, func(c *tls.Config) { c.NextProtos = []string{"h2"} }), "unsupported application protocols"},
	}
	for name, bad := range badSources(t, ca, "s2") {
		cases[name] = refused{careless(t, bad.source, nil), bad.want}
	}
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			conf := hostServer(t, ca.Source(serverURI("s1"), nil), only("s1", "s2"))
			read, conn, err, _ := handshakes(t, conf, tt.client)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("handshake: %v, want %q", err, tt.want)
			}
			if read != "" {
				t.Errorf("it was read: %q", read)
			}
			state := conn.ConnectionState()
			if id, err := keyring.PeerID(&state, hostCluster); err == nil {
				t.Errorf("PeerID %q", id)
			}
		})
	}
}

func TestClientTLSRefuses(t *testing.T) {
	ca := keyringtest.NewCA(t)
	cases := badSources(t, ca, "s1")
	other := cases["no URI"]
	other.source, other.want = ca.Source(serverURI("s2"), nil), `server "s2", want "s1"`
	cases["another ID than dialled"] = other
	other.source, other.want = ca.Source(serverURI("s1"), nil), "does not speak host/1"
	cases["no protocol"] = other
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			own, err := tt.source()
			if err != nil {
				t.Fatal(err)
			}
			server := &tls.Config{Certificates: own.Certificates, NextProtos: []string{hostALPN}}
			if name == "no protocol" {
				server.NextProtos = nil
			}
			read, _, _, err := handshakes(t, server, dialling(hostClient(t, ca.Source(serverURI("s2"), nil), "s1")))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("handshake: %v, want %q", err, tt.want)
			}
			if read != "" {
				t.Errorf("the client said %q", read)
			}
		})
	}
}

// TestHostTLSAdmits has the good case, with an ID that has to be escaped, and PeerID of it.
func TestHostTLSAdmits(t *testing.T) {
	ca := keyringtest.NewCA(t)
	const id = "zone 1/s?"
	server := hostServer(t, ca.Source(serverURI("s1"), nil), only(id))
	client := dialling(hostClient(t, ca.Source(serverURI("zone%201%2Fs%3F"), nil), "s1"))
	read, conn, atServer, atClient := handshakes(t, server, client)
	if atServer != nil || atClient != nil || read != "hello" {
		t.Fatalf("server %v, client %v, read %q", atServer, atClient, read)
	}
	state := conn.ConnectionState()
	if got, err := keyring.PeerID(&state, hostCluster); got != id || err != nil {
		t.Errorf("PeerID %q, %v", got, err)
	}
	if state.NegotiatedProtocol != hostALPN || state.Version != tls.VersionTLS13 {
		t.Errorf("%q, version %x", state.NegotiatedProtocol, state.Version)
	}
	if got, err := keyring.PeerID(&state, "other"); err == nil {
		t.Errorf("in another cluster: %q", got)
	}
	state.VerifiedChains = nil
	if got, err := keyring.PeerID(&state, hostCluster); err == nil || !strings.Contains(err.Error(), "no verified certificate") {
		t.Errorf("unverified: %q, %v", got, err)
	}
}

func TestPeerIDRefuses(t *testing.T) {
	ca := keyringtest.NewCA(t)
	verified := func(uri string) *tls.ConnectionState {
		own, err := ca.Source(uri, nil)()
		if err != nil {
			t.Fatal(err)
		}
		leaf := own.Certificates[0].Leaf
		return &tls.ConnectionState{
			HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf},
			VerifiedChains: [][]*x509.Certificate{{leaf, ca.Cert}},
		}
	}
	unverified := verified(serverURI("s1"))
	unverified.VerifiedChains = nil
	underWay := verified(serverURI("s1"))
	underWay.HandshakeComplete = false // crypto/tls sets the chains before VerifyConnection has refused
	for name, tt := range map[string]struct {
		state *tls.ConnectionState
		want  string
	}{
		"nil":            {nil, "not a TLS connection"},
		"no handshake":   {&tls.ConnectionState{}, "has not ended"},
		"under way":      {underWay, "has not ended"},
		"no certificate": {&tls.ConnectionState{HandshakeComplete: true}, "no verified certificate"},
		"unverified":     {unverified, "no verified certificate"},
		"client role":    {verified("keyring://prod/client/s1"), `role "client", want "server"`},
		"other cluster":  {verified("keyring://other/server/s1"), `cluster "other", want "prod"`},
		"no keyring URI": {verified("spiffe://prod/server/s1"), "0 keyring URIs"},
	} {
		if id, err := keyring.PeerID(tt.state, hostCluster); id != "" || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %q, %v, want %q", name, id, err, tt.want)
		}
	}
	if id, err := keyring.PeerID(verified(serverURI("s1")), hostCluster); id != "s1" || err != nil {
		t.Errorf("good: %q, %v", id, err)
	}
}

// TestServerTLSAsksInEveryHandshake: also of a client that has a session ticket of the last.
func TestServerTLSAsksInEveryHandshake(t *testing.T) {
	ca := keyringtest.NewCA(t)
	var asked, gone atomic.Int32
	conf := hostServer(t, ca.Source(serverURI("s1"), nil), func(raft.ServerID) error {
		asked.Add(1)
		if gone.Load() > 0 {
			return errors.New("was removed")
		}
		return nil
	})
	cache := tls.NewLRUClientSessionCache(4)
	client := careless(t, ca.Source(serverURI("s2"), nil), func(c *tls.Config) { c.ClientSessionCache, c.ServerName = cache, "s1" })
	for i := range int32(3) {
		_, conn, err, _ := handshakes(t, conf, client)
		if err != nil || asked.Load() != i+1 || conn.ConnectionState().DidResume {
			t.Fatalf("%d: %v, asked %d times, resumed %v", i, err, asked.Load(), conn.ConnectionState().DidResume)
		}
	}
	gone.Store(1)
	if read, _, err, _ := handshakes(t, conf, client); err == nil || !strings.Contains(err.Error(), "was removed") || read != "" {
		t.Errorf("removed: %v, %q", err, read)
	}
}

// TestHostTLSReloads replaces a certificate, and then the CA, under configurations that are in use.
func TestHostTLSReloads(t *testing.T) {
	first, second := keyringtest.NewCA(t), keyringtest.NewCA(t)
	var now atomic.Pointer[tlsSource]
	use := func(s tlsSource) { now.Store(&s) }
	use(first.Source(serverURI("s1"), nil))
	reload := func() (*tls.Config, error) { return (*now.Load())() }
	conf := hostServer(t, reload, only("s1", "s2"))

	old, err := reload()
	if err != nil {
		t.Fatal(err)
	}
	serial := func(ca *keyringtest.CA) string {
		t.Helper()
		var seen string
		c := hostClient(t, ca.Source(serverURI("s2"), nil), "s1")
		after := c.VerifyConnection
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			seen = cs.PeerCertificates[0].SerialNumber.String()
			return after(cs)
		}
		if _, _, err, _ := handshakes(t, conf, dialling(c)); err != nil {
			t.Fatal(err)
		}
		return seen
	}
	if got := serial(first); got != old.Certificates[0].Leaf.SerialNumber.String() {
		t.Errorf("certificate %s", got)
	}
	use(first.Source(serverURI("s1"), nil))
	if got := serial(first); got == old.Certificates[0].Leaf.SerialNumber.String() {
		t.Error("the certificate of before")
	}
	use(second.Source(serverURI("s1"), nil))
	serial(second)
	foreign := careless(t, first.Source(serverURI("s2"), nil), nil)
	if _, _, err, _ := handshakes(t, conf, foreign); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("the CA of before: %v", err)
	}
	use(func() (*tls.Config, error) { return nil, errors.New("file is gone") })
	if _, _, err, _ := handshakes(t, conf, careless(t, second.Source(serverURI("s2"), nil), nil)); err == nil || !strings.Contains(err.Error(), "file is gone") {
		t.Errorf("no certificate to be had: %v", err)
	}
	if _, err := keyring.ClientTLS(reload, hostCluster, "s2", hostALPN); err == nil || !strings.Contains(err.Error(), "file is gone") {
		t.Errorf("no certificate to dial with: %v", err)
	}
}

func TestHostTLSArguments(t *testing.T) {
	ca := keyringtest.NewCA(t)
	good := ca.Source(serverURI("s1"), nil)
	own, err := good()
	if err != nil {
		t.Fatal(err)
	}
	returns := func(c *tls.Config) tlsSource { return func() (*tls.Config, error) { return c, nil } }
	for name, tt := range map[string]struct {
		source    tlsSource
		cluster   string
		protocols []string
		want      string
	}{
		"source":       {nil, "prod", []string{"a"}, "nil"},
		"cluster":      {good, "", []string{"a"}, `cluster ""`},
		"odd cluster":  {good, "a/b", []string{"a"}, `cluster "a/b"`},
		"protocols":    {good, "prod", nil, "no protocol (ALPN)"},
		"protocol":     {good, "prod", []string{"a", ""}, "no protocol (ALPN)"},
		"nil config":   {returns(nil), "prod", []string{"a"}, "RootCAs is required"},
		"no roots":     {returns(&tls.Config{Certificates: own.Certificates}), "prod", []string{"a"}, "RootCAs is required"},
		"no cert":      {returns(&tls.Config{RootCAs: own.RootCAs}), "prod", []string{"a"}, "no certificate"},
		"source fails": {func() (*tls.Config, error) { return nil, io.ErrUnexpectedEOF }, "prod", []string{"a"}, "unexpected EOF"},
	} {
		_, err := keyring.ServerTLS(tt.source, tt.cluster, only(), tt.protocols...)
		if err == nil || !strings.HasPrefix(err.Error(), "server TLS") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: server: %v, want %q", name, err, tt.want)
		}
		_, err = keyring.ClientTLS(tt.source, tt.cluster, "s1", tt.protocols...)
		if err == nil || !strings.HasPrefix(err.Error(), "client TLS") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: client: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := keyring.ServerTLS(good, "prod", nil, "a"); err == nil || !strings.Contains(err.Error(), "member is nil") {
		t.Errorf("member: %v", err)
	}
	if _, err := keyring.ClientTLS(good, "prod", "", "a"); err == nil || !strings.Contains(err.Error(), "server's ID is empty") {
		t.Errorf("server: %v", err)
	}
}

// TestPeerIDRefusesACertificateThatHasEnded since its connection was made.
func TestPeerIDRefusesACertificateThatHasEnded(t *testing.T) {
	ca := keyringtest.NewCA(t)
	for end, ok := range map[time.Time]bool{time.Now().Add(time.Minute): true, time.Now().Add(-time.Minute): false} {
		conf, err := ca.Source("keyring://test/server/s1", func(c *x509.Certificate) { c.NotAfter = end })()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(conf.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		state := &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
		if id, err := keyring.PeerID(state, "test"); (err == nil) != ok || ok && id != "s1" {
			t.Errorf("%v: %q, %v", end, id, err)
		}
	}
}

// TestNodeCutsConnectionsThatItsCAsDoNotVouchForAnyMore, once they are replaced.
func TestNodeCutsConnectionsThatItsCAsDoNotVouchForAnyMore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var replaced atomic.Bool
	other, err := keyringtest.NewCA(t).Source("keyring://test/server/s1", nil)()
	if err != nil {
		t.Fatal(err)
	}
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		source, id := cfg.TLS, cfg.ID
		cfg.TLS = func() (*tls.Config, error) {
			conf, err := source()
			if err == nil && id == "s1" && replaced.Load() {
				conf = conf.Clone()
				conf.RootCAs = other.RootCAs
			}
			return conf, err
		}
	})
	c.Ready(ctx)
	d := &peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/s2", nil)}
	conn, err := d.Dial(ctx, "s1", c.Addrs["s1"], peer.ALPNRaft)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	replaced.Store(true)
	keyringtest.WantClosed(ctx, t, []*peer.Conn{conn})
}

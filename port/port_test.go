package port_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/port"
	"github.com/hashicorp/raft"
)

// dialer makes connections with a certificate.
func (hs *hosts) dialer(source peer.Source) *peer.Dialer {
	return &peer.Dialer{Cluster: "test", TLS: source, DialContext: hs.pipes.DialContext}
}

// call makes a call of a server's keyring with a certificate, over a new connection.
func (hs *hosts) call(ctx context.Context, source peer.Source, to *host) ([]byte, error) {
	client := peer.NewClient(hs.dialer(source))
	defer client.Close()
	return client.Call(ctx, string(to.id), to.addr, "/keyring", []byte(`{"version":1,"hello":{}}`))
}

// TestHostsWithARaftOfTheirOwnRunOverPorts: raft and the keyring, until a server is removed.
func TestHostsWithARaftOfTheirOwnRunOverPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		leader := hs.leader()
		sealed, err := leader.keys.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitHolders(leader.keys, leader.keys.Keys()[0].ID, 3)
		for id, h := range hs.all {
			if got, err := h.keys.Decrypt(sealed, nil); err != nil || string(got) != "data" {
				t.Errorf("%s: %q, %v", id, got, err)
			}
			if addr := h.port.StreamLayer().Addr().String(); addr != h.addr {
				t.Errorf("%s takes %s for its address", id, addr)
			}
		}
	})
}

// TestServerThatWasRemovedIsCutOff: the connections that it has end, raft's and those of calls, and it gets no others.
func TestServerThatWasRemovedIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		leader := hs.leader()
		gone := hs.other(leader)
		var conns []*peer.Conn
		for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer} {
			conn, err := hs.dialer(gone.tls).Dial(t.Context(), string(leader.id), leader.addr, alpn)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil { // virtual
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		if _, err := hs.call(t.Context(), gone.tls, leader); err != nil {
			t.Fatal(err)
		}
		if err := leader.keys.RemoveServer(t.Context(), gone.id, keyring.RemoveServerOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, conn := range conns {
			if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection for %s goes on: %v", conn.ConnectionState().NegotiatedProtocol, err)
			}
		}
		if conn, err := hs.dialer(gone.tls).Dial(t.Context(), string(leader.id), leader.addr, peer.ALPNRaft); err == nil {
			conn.Close()
			t.Error("raft of a removed server gets a connection")
		}
		if _, err := hs.call(t.Context(), gone.tls, leader); !peer.Refused(err, peer.NotMember) {
			t.Errorf("the keyring of a removed server: %v", err)
		}
	})
}

// TestCertificatesOfOthersAreRefused: of another CA, another cluster, another role, and of a server that is no member.
func TestCertificatesOfOthersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 1)
		h := hs.all["h1"]
		roots, err := h.tls()
		if err != nil {
			t.Fatal(err)
		}
		foreign := keyringtest.NewCA(t).Source(uri("h1"), nil)
		for name, tt := range map[string]struct {
			source  peer.Source
			outside bool // it gets a connection for calls, and is refused each
		}{
			"another CA": {func() (*tls.Config, error) {
				c, err := foreign()
				c.RootCAs = roots.RootCAs // it trusts the server all the same
				return c, err
			}, false},
			"another cluster": {hs.ca.Source("keyring://other/server/h1", nil), false},
			"another role":    {hs.ca.Source("keyring://test/client/h1", nil), false},
			"no URI of ours":  {hs.ca.Source("https://test/server/h1", nil), false},
			"ended":           {hs.ca.Source(uri("h1"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), false},
			"no member":       {hs.ca.Source(uri("h9"), nil), true},
		} {
			if conn, err := hs.dialer(tt.source).Dial(t.Context(), "h1", h.addr, peer.ALPNRaft); err == nil {
				conn.Close()
				t.Errorf("%s: raft gets a connection", name)
			}
			switch _, err := hs.call(t.Context(), tt.source, h); {
			case err == nil, tt.outside != peer.Refused(err, peer.NotMember):
				t.Errorf("%s: a call: %v", name, err)
			}
		}
	})
}

// TestPortThatHasNoRaftYet reaches nobody, and answers nobody: the keyring makes calls as soon as it is open.
func TestPortThatHasNoRaftYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 2)
		h := hs.all["h1"]
		hs.listen(h)
		if _, err := h.port.Call(t.Context(), "h2", nil); err == nil {
			t.Error("it has reached a server")
		}
		if conn, err := h.port.StreamLayer().Dial(raft.ServerAddress(hs.all["h2"].addr), time.Second); err == nil {
			conn.Close()
			t.Error("its raft has reached a server")
		}
		if _, err := hs.call(t.Context(), hs.all["h2"].tls, h); !peer.Refused(err, peer.NotReady) {
			t.Errorf("a call: %v", err)
		}
		if conn, err := hs.dialer(hs.all["h2"].tls).Dial(t.Context(), "h1", h.addr, peer.ALPNRaft); err == nil {
			conn.Close()
			t.Error("another server's raft gets a connection")
		}
	})
}

// TestCloseEndsTheCallsUnderWay, those of this server and those of others, and says the same when it is called again.
func TestCloseEndsTheCallsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		leader := hs.leader()
		mute := hs.other(leader)
		hs.stop(mute)
		ln := hs.pipes.Listen(t, mute.addr) // takes connections and says nothing
		defer ln.Close()
		ended := make(chan error, 1)
		go func() {
			_, err := leader.port.Call(t.Context(), mute.id, nil)
			ended <- err
		}()
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- leader.port.Close() }()
		if err := <-ended; err == nil {
			t.Error("the call has an answer")
		}
		if first, again := <-closed, leader.port.Close(); first != nil || again != nil {
			t.Errorf("Close: %v, and again %v", first, again)
		}
	})
}

// TestListenRefusesWhatCanNotWork, with all that is wrong with it.
func TestListenRefusesWhatCanNotWork(t *testing.T) {
	hs := newHosts(t, 1)
	h := hs.all["h1"]
	for name, tt := range map[string]struct {
		change func(*port.Config)
		want   []string
	}{
		"nothing is set":  {func(c *port.Config) { *c = port.Config{Listener: c.Listener} }, []string{"ID", "Cluster is empty", "TLS is nil", "Addr"}},
		"Addr":            {func(c *port.Config) { c.Addr = "0.0.0.0:7900" }, []string{"Addr", "set Advertise"}},
		"Advertise":       {func(c *port.Config) { c.Advertise = "h1" }, []string{"Advertise"}},
		"Addresses":       {func(c *port.Config) { c.Addresses = map[raft.ServerID]string{"h2": "h2"} }, []string{"Addresses: server h2"}},
		"Cluster":         {func(c *port.Config) { c.Cluster = "a b" }, []string{`cluster "a b"`}},
		"of another":      {func(c *port.Config) { c.TLS = hs.ca.Source(uri("h2"), nil) }, []string{"own certificate is that of", "want keyring://test/server/h1"}},
		"no certificate":  {func(c *port.Config) { c.TLS = func() (*tls.Config, error) { return nil, errors.New("gone") } }, []string{"TLS configuration: gone"}},
		"nothing vouches": {func(c *port.Config) { c.TLS = func() (*tls.Config, error) { return &tls.Config{}, nil } }, []string{"RootCAs is required"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := hs.config(h)
			tt.change(&cfg)
			p, err := port.Listen(cfg)
			if err == nil {
				p.Close()
				t.Fatal("it is opened")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			hs.pipes.Listen(t, h.addr).Close() // which fails if the listener was left open
		})
	}
}

// TestOpenSaysThatBootstrapIsToBeWaitedFor, where raft has no configuration; afterwards Open works.
func TestOpenSaysThatBootstrapIsToBeWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 1)
		h := hs.all["h1"]
		hs.listen(h)
		hs.raftAlone(h, false)
		if _, err := h.port.Open(t.Context(), h.keyring()); err == nil || !strings.Contains(err.Error(), "wait for that, as in r.BootstrapCluster(servers).Error()") {
			t.Errorf("%v", err)
		}
		if err := h.raft.BootstrapCluster(hs.initial).Error(); err != nil {
			t.Fatal(err)
		}
		var err error
		if h.keys, err = h.port.Open(t.Context(), h.keyring()); err != nil {
			t.Error(err)
		}
	})
}

// TestOpenRefusesAnotherServersKeyring, and a second one.
func TestOpenRefusesAnotherServersKeyring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 1)
		h := hs.all["h1"]
		cfg := h.keyring()
		if _, err := h.port.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "called already") {
			t.Errorf("a second one: %v", err)
		}
		cfg.ID = "h2"
		if _, err := h.port.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "the keyring's ID is h2") {
			t.Errorf("of another: %v", err)
		}
	})
}

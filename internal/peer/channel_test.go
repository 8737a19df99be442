package peer_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"reflect"
	"strings"
	"testing"

	"example.com/keyring/internal/peer"
)

// publicKey is that of a certificate, in DER.
func publicKey(t *testing.T, cert tls.Certificate) []byte {
	t.Helper()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.RawSubjectPublicKeyInfo
}

// sourcesOf are the ways in which a host may name its certificate.
func sourcesOf(a *ca) map[string]func(tls.Certificate) peer.Source {
	base := func() *tls.Config { return &tls.Config{RootCAs: a.pool()} }
	return map[string]func(tls.Certificate) peer.Source{
		"a list": func(c tls.Certificate) peer.Source { return a.with(c) },
		"a callback": func(c tls.Certificate) peer.Source {
			return func() (*tls.Config, error) {
				conf := base()
				conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }
				return conf, nil
			}
		},
		"a callback for each side": func(c tls.Certificate) peer.Source {
			return func() (*tls.Config, error) {
				conf := base()
				conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
				return conf, nil
			}
		},
	}
}

// TestBothEndsSeeOneChannel: the certificates are those that were shown, however the host chooses them, and
// the exporter is that of this connection.
func TestBothEndsSeeOneChannel(t *testing.T) {
	var seen []peer.Channel
	h := func(ctx context.Context, _ peer.Identity, _ string, body []byte) ([]byte, error) {
		ch, err := peer.ConnOf(ctx).Channel()
		seen = append(seen, ch)
		return body, err
	}
	a := newCA(t)
	mine, others := a.issue([]string{serverURI("a")}), a.issue([]string{serverURI("b")})
	for name, source := range sourcesOf(a) {
		t.Run(name, func(t *testing.T) {
			seen = nil
			ln := loopback(t)
			port := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, source(others), everybody)})
			defer port.Close()
			server := peer.Serve(port.Listener(peer.ALPNPeer), h, peer.ServerOptions{})
			defer server.Close()
			d := &peer.Dialer{Cluster: cluster, TLS: source(mine)}
			var own []peer.Channel
			for range 2 {
				s, err := d.Session(t.Context(), "b", ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				for range 2 {
					if b, err := s.Call(t.Context(), "/v1/test", []byte("x")); err != nil || string(b) != "x" {
						t.Fatalf("%s, %v", b, err)
					}
				}
				ch, err := s.Conn().Channel()
				if err != nil {
					t.Fatal(err)
				}
				own = append(own, ch, ch)
			}
			if len(seen) != 4 {
				t.Fatalf("%d calls", len(seen))
			}
			for i, theirs := range seen {
				if !bytes.Equal(theirs.Exporter, own[i].Exporter) || len(theirs.Exporter) != 32 {
					t.Error("another exporter at the other end")
				}
				if !bytes.Equal(theirs.Own, publicKey(t, others)) || !bytes.Equal(theirs.Other, publicKey(t, mine)) {
					t.Error("not the keys of the certificates")
				}
				if !bytes.Equal(own[i].Own, theirs.Other) || !bytes.Equal(own[i].Other, theirs.Own) {
					t.Error("the two ends do not see the same")
				}
			}
			if reflect.DeepEqual(seen[0], seen[2]) || !reflect.DeepEqual(seen[0], seen[1]) {
				t.Error("two connections have one channel, or one has two")
			}
		})
	}
}

// TestSessionEndsWithItsContext: a server that does not answer holds up nobody.
func TestSessionEndsWithItsContext(t *testing.T) {
	asked := make(chan struct{})
	h := func(ctx context.Context, _ peer.Identity, path string, _ []byte) ([]byte, error) {
		if path == "/refuse" {
			return nil, &peer.Refusal{Code: peer.NotMember}
		}
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	onSockets(t, h, func(s *service) {
		session, err := s.dialer.Session(t.Context(), "b", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		var refusal *peer.Refusal
		if _, err := session.Call(t.Context(), "/refuse", nil); !errors.As(err, &refusal) || refusal.Code != peer.NotMember {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		if _, err := session.Call(ctx, "/hang", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if _, err := session.Call(t.Context(), "/refuse", nil); err == nil {
			t.Error("a session goes on after its end")
		}
	})
}

// TestSessionTakesNoEndlessAnswer: the other end may be no server of the cluster yet, and the memory is this one's.
func TestSessionTakesNoEndlessAnswer(t *testing.T) {
	a := newCA(t)
	for name, part := range map[string]string{"headers": "X: " + strings.Repeat("x", 1000) + "\r\n", "one header": strings.Repeat("x", 1000)} {
		ln := loopback(t)
		port := peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("b"), everybody)})
		defer port.Close()
		conns := port.Listener(peer.ALPNPeer)
		const most = 64 << 20 // what the server sends before it gives up
		sent := make(chan int, 1)
		go func() {
			c, err := conns.Accept()
			if err != nil {
				return
			}
			n, err := c.Write([]byte("HTTP/1.1 200 OK\r\n"))
			for more := 0; err == nil && n < most; n += more {
				more, err = c.Write([]byte(part))
			}
			c.Close()
			sent <- n
		}()
		s, err := (&peer.Dialer{Cluster: cluster, TLS: a.source("a")}).Session(t.Context(), "b", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Call(t.Context(), "/v1/test", nil); err == nil {
			t.Errorf("%s: there is an answer", name)
		}
		s.Close()
		if n := <-sent; n >= most {
			t.Errorf("%s: all %d bytes are read", name, n)
		}
	}
}

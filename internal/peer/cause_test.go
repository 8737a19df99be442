package peer_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
)

// wantCause requires a dial to fail for a cause, in words that are the same at each dial.
func wantCause(t *testing.T, d *peer.Dialer, server, addr, want string) {
	t.Helper()
	var causes []string
	for range 2 {
		_, err := d.Dial(t.Context(), server, addr, peer.ALPNPeer)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%v, want %q", err, want)
		}
		causes = append(causes, peer.CauseOf(err))
	}
	if causes[0] != causes[1] || !strings.Contains(causes[0], want) {
		t.Errorf("causes %q, want %q in both", causes, want)
	}
}

// TestDialSaysWhyACertificateIsRefused, on the side of the one that dials, and on that of the one that is dialled.
func TestDialSaysWhyACertificateIsRefused(t *testing.T) {
	noLeak(t)
	a, foreign := newCA(t), newCA(t)
	past := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	future := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	usage := func(u x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{u} }
	}
	b, elsewhere := []string{serverURI("b")}, []string{"keyring://staging/server/b"}
	ahead := func() (*tls.Config, error) { // accepts, by its own clock, what is not valid yet
		c, err := foreign.source("a")()
		c.Time = func() time.Time { return time.Now().Add(-240 * time.Hour) }
		c.RootCAs = a.pool()
		return c, err
	}
	for name, tt := range map[string]struct {
		dialer, dialled peer.Source
		want            string
	}{
		"another CA":             {a.source("a"), foreign.source("b"), "its certificate is from another CA"},
		"expired":                {a.source("a"), a.with(a.issue(b, past)), "its certificate expired at"},
		"not yet valid":          {a.source("a"), a.with(a.issue(b, future)), "is not valid before"},
		"by another clock":       {ahead, a.source("b"), "by the clock of the TLS configuration"},
		"not for servers":        {a.source("a"), a.with(a.issue(b, usage(x509.ExtKeyUsageClientAuth))), "not for server authentication"},
		"another server":         {a.source("a"), a.source("c"), "another server answers there"},
		"another cluster":        {a.source("a"), a.with(a.issue(elsewhere)), "one of another cluster"},
		"own is of another CA":   {knows(foreign.source("a"), a), a.source("b"), "does not know the CA of this server's certificate"},
		"own has expired":        {a.with(a.issue([]string{serverURI("a")}, past)), a.source("b"), "this server's certificate has expired, or is not valid yet"},
		"own is not for clients": {a.with(a.issue([]string{serverURI("a")}, usage(x509.ExtKeyUsageServerAuth))), a.source("b"), "it rejects this server's certificate"},
		"own is of another cluster": {
			a.with(a.issue([]string{"keyring://staging/server/a"})), a.source("b"), "belongs to another cluster, or this server is not one of its members",
		},
	} {
		t.Run(name, func(t *testing.T) {
			conf, err := peer.ServerConfig(tt.dialled, cluster, everybody, peer.ALPNPeer)
			if err != nil {
				t.Fatal(err)
			}
			p := peer.Listen(loopback(t), peer.PortOptions{TLS: conf})
			defer p.Close()
			ln := p.Listener(peer.ALPNPeer)
			defer ln.Close()
			wantCause(t, &peer.Dialer{Cluster: cluster, TLS: tt.dialer}, "b", p.Addr().String(), tt.want)
		})
	}
}

// knows returns a source with the CAs of another authority.
func knows(s peer.Source, others *ca) peer.Source {
	return func() (*tls.Config, error) {
		c, err := s()
		c.RootCAs = others.pool()
		return c, err
	}
}

// TestDialSaysWhatElseIsThere: another service, or nothing.
func TestDialSaysWhatElseIsThere(t *testing.T) {
	a := newCA(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	web := httptest.NewUnstartedServer(http.NotFoundHandler())
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.TLS = &tls.Config{NextProtos: []string{"h2"}}
	web.StartTLS()
	defer web.Close()
	closed := loopback(t)
	closed.Close()
	speaks := func(text string) string {
		ln := loopback(t)
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.CopyN(io.Discard, c, 100) // of the hello: closing with bytes unread resets
				io.WriteString(c, text)
				c.Close()
			}
		}()
		return ln.Addr().String()
	}
	d := &peer.Dialer{Cluster: cluster, TLS: a.source("a")}
	for addr, want := range map[string]string{
		plain.Listener.Addr().String():  "it speaks plain HTTP",
		web.Listener.Addr().String():    "not the keyring's protocol",
		closed.Addr().String():          "nothing listens there",
		speaks("SSH-2.0-OpenSSH_9\r\n"): "it does not speak TLS",
		speaks(""):                      "closes the connection without an answer",
	} {
		wantCause(t, d, "b", addr, want)
	}
}

// TestDialSaysWhatTheNetworkLacks.
func TestDialSaysWhatTheNetworkLacks(t *testing.T) {
	a := newCA(t)
	for want, err := range map[string]error{
		"DNS does not know the name": &net.DNSError{Err: "no such host", Name: "s2", IsNotFound: true},
		"DNS does not answer":        &net.DNSError{Err: "server misbehaving", Name: "s2", IsTemporary: true},
		"nothing listens there":      &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		"there is no route to it":    &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)},
		"no answer: is the machine":  &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ETIMEDOUT)},
		"too many open files":        &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)},
	} {
		d := &peer.Dialer{Cluster: cluster, TLS: a.source("a"), DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, err }}
		wantCause(t, d, "b", "s2:1", want)
		if _, got := d.Dial(t.Context(), "b", "s2:1", peer.ALPNPeer); !errors.Is(got, err) {
			t.Errorf("%v is not %v", got, err)
		}
	}
}

// TestDialTellsAMuteServiceFromNoAnswer: a firewall that drops what is sent, and a service that hangs.
func TestDialTellsAMuteServiceFromNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCA(t)
		drops := func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		hangs := func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go io.Copy(io.Discard, there)
			return here, nil
		}
		wantCause(t, &peer.Dialer{Cluster: cluster, TLS: a.source("a"), DialContext: drops}, "b", "s2:1", "no answer: is the machine down")
		wantCause(t, &peer.Dialer{Cluster: cluster, TLS: a.source("a"), DialContext: hangs}, "b", "s2:1", "nothing comes back")
	})
}

package peer_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// TestOwnCertificateIsCheckedHere, and not by the others one by one.
func TestOwnCertificateIsCheckedHere(t *testing.T) {
	a, foreign := newCA(t), newCA(t)
	own := []string{serverURI("a")}
	swapped := a.issue(own)
	swapped.PrivateKey = newKey(t)
	keyless := a.issue(own)
	keyless.PrivateKey = nil
	usage := func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }
	conf := func(s peer.Source, change func(*tls.Config)) *tls.Config {
		c, err := s()
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(c)
		}
		return c
	}
	for name, tt := range map[string]struct {
		conf *tls.Config
		want string // nothing: it is in order
	}{
		"good":                    {conf(a.source("a"), nil), ""},
		"of an intermediate":      {conf(a.intermediate().source("a"), func(c *tls.Config) { c.RootCAs = a.pool() }), ""},
		"expired":                 {conf(a.with(a.issue(own, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), nil), "own certificate expired at"},
		"not yet valid":           {conf(a.with(a.issue(own, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })), nil), "own certificate is not valid before"},
		"another CA":              {conf(foreign.source("a"), func(c *tls.Config) { c.RootCAs = a.pool() }), "own certificate is from another CA than those in RootCAs"},
		"another CA for clients":  {conf(a.source("a"), func(c *tls.Config) { c.ClientCAs = foreign.pool() }), "own certificate is from another CA than those in ClientCAs"},
		"for servers alone":       {conf(a.with(a.issue(own, usage)), nil), "not for both server and client authentication"},
		"another key":             {conf(a.with(swapped), nil), "do not belong together"},
		"no key":                  {conf(a.with(keyless), nil), "no private key"},
		"another server":          {conf(a.source("b"), nil), "want keyring://prod-1/server/a"},
		"another cluster":         {conf(a.with(a.issue([]string{"keyring://staging/server/a"})), nil), "want keyring://prod-1/server/a"},
		"no URI":                  {conf(a.with(a.issue(nil)), nil), "0 keyring URIs"},
		"garbage":                 {conf(a.with(tls.Certificate{Certificate: [][]byte{{1}}}), nil), "own certificate: x509"},
		"the CA expired":          {conf(expired(t).source("a"), nil), "CA's certificate expired"},
		"valid by its own clock":  {conf(a.with(a.issue(own, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), clock(-30*time.Minute)), ""},
		"of a callback":           {&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }}, ""},
		"expired by its own time": {conf(a.source("a"), clock(60*time.Hour)), "own certificate expired at"},
	} {
		t.Run(name, func(t *testing.T) {
			err := peer.CheckOwn(tt.conf, peer.Identity{Cluster: cluster, Role: peer.RoleServer, ID: "a"})
			if err == nil {
				err = peer.CheckOwnNow(tt.conf)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "expired at") || strings.Contains(err.Error(), "not valid before")) && !strings.Contains(err.Error(), " UTC") {
				t.Errorf("%q does not name the zone of its time", err)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("%q says one cause twice", err)
			}
		})
	}
}

func clock(by time.Duration) func(*tls.Config) {
	return func(c *tls.Config) { c.Time = func() time.Time { return time.Now().Add(by) } }
}

// expired is an authority whose certificate has ended.
func expired(t *testing.T) *ca {
	a := newCA(t)
	a.cert.NotAfter, a.cert.NotBefore = time.Now().Add(-time.Minute), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

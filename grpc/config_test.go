package keyringgrpc_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	keyringgrpc "example.com/keyring/grpc"
)

// TestNewSaysWhatIsWrong with a configuration, or with this server's own certificate.
func TestNewSaysWhatIsWrong(t *testing.T) {
	ca := newCA()
	ended := ca.server("s1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	for name, tt := range map[string]struct {
		change func(*keyringgrpc.Config)
		want   string
	}{
		"good":              {func(*keyringgrpc.Config) {}, ""},
		"ended":             {func(c *keyringgrpc.Config) { c.TLS = ended }, ""}, // it may be replaced
		"no ID":             {func(c *keyringgrpc.Config) { c.ID = "" }, "ID is empty"},
		"no TLS":            {func(c *keyringgrpc.Config) { c.TLS = nil }, "TLS is nil"},
		"no cluster":        {func(c *keyringgrpc.Config) { c.Cluster = "" }, `cluster ""`},
		"no port":           {func(c *keyringgrpc.Config) { c.Addr = "10.0.0.1" }, "missing port"},
		"clients":           {func(c *keyringgrpc.Config) { c.MaxClients = -1 }, "MaxClients -1"},
		"another server's":  {func(c *keyringgrpc.Config) { c.ID = "s2" }, `own certificate: it is that of server "s1", want "s2"`},
		"another cluster's": {func(c *keyringgrpc.Config) { c.Cluster = "test" }, `cluster "prod", want "test"`},
		"a client's":        {func(c *keyringgrpc.Config) { c.TLS = ca.source("keyring://prod/client/s1") }, `role "client"`},
		"no roots": {func(c *keyringgrpc.Config) {
			c.TLS = func() (*tls.Config, error) { return new(tls.Config), nil }
		}, "RootCAs is required"},
		"no file": {func(c *keyringgrpc.Config) {
			c.TLS = func() (*tls.Config, error) { return nil, errors.New("no such file") }
		}, "no such file"},
		"no file for clients": {func(c *keyringgrpc.Config) {
			c.Clients = func() (*tls.Config, error) { return nil, errors.New("no such file") }
		}, "no such file"},
	} {
		cfg := keyringgrpc.Config{ID: "s1", Cluster: "prod", Addr: "10.0.0.1:7900", TLS: ca.server("s1")}
		tt.change(&cfg)
		p, err := keyringgrpc.New(cfg)
		if err == nil {
			p.Close()
		}
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// TestConfigurationThatIsKept goes on to be used, as when keyring.TLSFiles can't read a file any more; and the log says so.
func TestConfigurationThatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var key string
		p := newPair(t, func(ca *ca) (s1, s2 source) {
			s1, key = ca.files(t.TempDir(), "s1")
			return s1, ca.server("s2")
		})
		must(os.Remove(key))
		time.Sleep(2 * keyringgrpc.RecheckEvery) // virtual
		p.s1.told.wait("could not read the certificates")
		p.stays("a file is gone")
		p.out.Close()
		p.in.Close()
		p.connect()
		if err := healthy(t.Context(), p.s2.Conn("s1")); err != nil {
			t.Error(err)
		}
		_, err := keyringgrpc.New(keyringgrpc.Config{ID: "s1", Cluster: "prod", Addr: "s1:1", TLS: p.sources["s1"].get, Clients: p.sources["s1"].get})
		if err != nil {
			t.Errorf("it is not kept: %v", err)
		}
	})
}

package keyringgrpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	keyringgrpc "example.com/keyring/grpc"
)

// TestCertificatesOfThisServer: when its own ends, when its CA's does, and why others refuse it.
func TestCertificatesOfThisServer(t *testing.T) {
	ca := newCA()
	brief := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }
	for name, tt := range map[string]struct {
		source source
		want   string // the error, if any
		ends   int
	}{
		"good":              {ca.server("s1", brief), "", 2},
		"ended":             {ca.server("s1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired", 1},
		"of another server": {ca.server("s2"), `it is that of server "s2", want "s1"`, 1},
		"of a CA that is not known": {func() (*tls.Config, error) {
			conf, err := ca.server("s1")()
			conf.RootCAs = newCA().pool()
			return conf, err
		}, "unknown authority", 1},
		"of a CA that is not known for clients": {func() (*tls.Config, error) {
			conf, err := ca.server("s1")()
			conf.ClientCAs = newCA().pool()
			return conf, err
		}, "unknown authority", 1},
		"no file": {func() (*tls.Config, error) { return nil, errors.New("no such file") }, "no such file", 0},
		"of a callback": {func() (*tls.Config, error) {
			conf, err := ca.server("s1")()
			own := conf.Certificates[0]
			conf.Certificates, conf.GetCertificate = nil, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &own, nil }
			return conf, err
		}, "", 0},
	} {
		s := newChanging(ca.server("s1"))
		p, err := keyringgrpc.New(keyringgrpc.Config{ID: "s1", Cluster: "prod", Addr: "s1:1", TLS: s.get})
		must(err)
		s.set(tt.source)
		all, err := p.Certificates()
		if len(all) != tt.ends || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %+v, %v", name, all, err)
		}
		if name == "good" && (all[0].CA || !all[1].CA || !all[1].NotAfter.Equal(ca.cert.NotAfter) || time.Until(all[0].NotAfter) > time.Hour) {
			t.Errorf("%+v", all)
		}
	}
}

// TestStatusHasCertificates of a host.
func TestStatusHasCertificates(t *testing.T) {
	h := newHosts(t)
	ctx, cancel := context.WithTimeout(h.ctx, time.Minute)
	defer cancel()
	s, err := h.all[0].keys.Status(ctx)
	if err != nil || len(s.Certificates) != 2 || s.Certificates[0].Server != "s1" {
		t.Errorf("%+v, %v", s.Certificates, err)
	}
}

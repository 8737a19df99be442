package keyringgrpc

// When this server's certificate ends, for Status and Metrics.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring"
)

// certificates is keyring.Config.Certificates: when this server's own certificate ends, and that of the CA
// which vouches for it; and why others refuse it now. One that comes from a callback is not looked at.
func (p *Peers) certificates() ([]keyring.Certificate, error) {
	base, err := p.cfg.TLS()
	if wrong := usable(base, err); wrong != nil {
		return nil, wrong
	}
	if len(base.Certificates) == 0 {
		return nil, err
	}
	chain, wrong := parse(base.Certificates[0])
	if wrong != nil {
		return nil, fmt.Errorf("own certificate: %w", wrong)
	}
	all := []keyring.Certificate{{Server: p.cfg.ID, NotBefore: chain[0].NotBefore, NotAfter: chain[0].NotAfter}}
	chains, wrong := verify(base, base.RootCAs, x509.ExtKeyUsageServerAuth, chain)
	if wrong == nil {
		clients := base.ClientCAs
		if clients == nil {
			clients = base.RootCAs
		}
		_, wrong = verify(base, clients, x509.ExtKeyUsageClientAuth, chain)
	}
	if wrong == nil {
		wrong = p.cfg.checkOwn() // it may have been replaced by another server's
	}
	if wrong != nil {
		return all, fmt.Errorf("own certificate, which others refuse: %w", wrong)
	}
	if ca := lastCA(chains); ca != nil {
		all = append(all, keyring.Certificate{Server: p.cfg.ID, CA: true, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter})
	}
	slices.SortStableFunc(all, func(a, b keyring.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	return all, err
}

// lastCA returns, of the CAs that vouch for a certificate, the one with which that ends: of each chain the
// first to end, and of these the last.
func lastCA(chains [][]*x509.Certificate) (last *x509.Certificate) {
	for _, chain := range chains {
		if len(chain) < 2 {
			continue
		}
		first := slices.MinFunc(chain[1:], func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		if last == nil || first.NotAfter.After(last.NotAfter) {
			last = first
		}
	}
	return last
}

func parse(cert tls.Certificate) (chain []*x509.Certificate, err error) {
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("it is empty")
	}
	return chain, nil
}

// verify verifies a certificate with its chain, at the time of the configuration.
func verify(base *tls.Config, roots *x509.CertPool, usage x509.ExtKeyUsage, certs []*x509.Certificate) ([][]*x509.Certificate, error) {
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: now(base)}
	for _, c := range certs[1:] {
		o.Intermediates.AddCert(c)
	}
	return certs[0].Verify(o)
}

// now is the time by which a TLS configuration goes.
func now(base *tls.Config) time.Time {
	if base.Time != nil {
		return base.Time()
	}
	return time.Now()
}

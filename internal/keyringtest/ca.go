package keyringtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// CA makes real certificates for tests.
type CA struct {
	TB   testing.TB
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA that is valid for a day.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	ca := &CA{TB: tb, key: newKey(tb)}
	ca.Cert = ca.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, &ca.key.PublicKey)
	return ca
}

// Source returns what Node wants of TLS, for a certificate with this URI. Change, if not nil,
// alters the certificate before it is signed.
func (ca *CA) Source(uri string, change func(*x509.Certificate)) func() (*tls.Config, error) {
	ca.TB.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		ca.TB.Fatal(err)
	}
	key := newKey(ca.TB)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	cert := ca.sign(template, ca.Cert, &key.PublicKey)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	return func() (*tls.Config, error) {
		return &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}},
			RootCAs:      roots,
		}, nil
	}
}

func (ca *CA) sign(template, parent *x509.Certificate, key *ecdsa.PublicKey) *x509.Certificate {
	ca.TB.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, ca.key)
	if err != nil {
		ca.TB.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.TB.Fatal(err)
	}
	return cert
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// listened are the ports that Listen has given.
var listened sync.Map

// Listen listens on a free port of the loopback interface, below those that systems give to
// connections, and never on the same twice: a server that is started again finds it free.
func Listen(tb testing.TB) (ln net.Listener) {
	tb.Helper()
	var err error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20_000+mrand.IntN(12_000))
		if _, given := listened.LoadOrStore(addr, true); given {
			continue
		}
		if ln, err = net.Listen("tcp", addr); err == nil {
			return ln
		}
	}
	tb.Fatal(err)
	return nil
}

package processes

// The certificates of a cluster.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"
)

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	return authority{key: newKey(t), cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name + " CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// files are those that a server starts with. Its certificate has its address too, for clients.
func (c *Cluster) files(s *Server) map[string][]byte {
	c.T.Helper()
	key := newKey(c.T)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		c.T.Fatal(err)
	}
	host, _, err := net.SplitHostPort(s.Addr)
	if err != nil {
		c.T.Fatal(err)
	}
	own := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: c.ca.cert.NotBefore, NotAfter: c.ca.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		URIs:        []*url.URL{{Scheme: "keyring", Host: c.name, Path: "/server/" + s.ID}},
		IPAddresses: []net.IP{net.ParseIP(host)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	kek := make([]byte, 32)
	rand.Read(kek)
	return map[string][]byte{
		"ca.crt":  c.sign(c.ca.cert, c.ca.key),
		"tls.crt": c.sign(own, key),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"kek":     kek,
	}
}

// sign returns a certificate in PEM.
func (c *Cluster) sign(cert *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	c.T.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, c.ca.cert, &key.PublicKey, c.ca.key)
	if err != nil {
		c.T.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

package keyringgrpc_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"example.com/keyring"
)

// source is what Config.TLS is.
type source = func() (*tls.Config, error)

// ca stands in for the CA of a cluster. Hosts read their certificates from files.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA() *ca {
	c := &ca{}
	own := c.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	c.cert, c.key = own.Leaf, own.PrivateKey.(*ecdsa.PrivateKey)
	return c
}

// source is of a certificate with that URI, which clients find to be that of 127.0.0.1 too.
func (c *ca) source(uri string, change ...func(*x509.Certificate)) source {
	u, err := url.Parse(uri)
	must(err)
	template := &x509.Certificate{
		URIs: []*url.URL{u}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	own := c.sign(template, change...)
	roots := c.pool()
	return func() (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: roots}, nil
	}
}

// server is the source of a server of the cluster "prod".
func (c *ca) server(id string, change ...func(*x509.Certificate)) source {
	return c.source("keyring://prod/server/"+id, change...)
}

// files is server, from PEM files in a directory. Key is the file of the private key.
func (c *ca) files(dir, id string) (s source, key string) {
	conf, err := c.server(id)()
	must(err)
	der, err := x509.MarshalPKCS8PrivateKey(conf.Certificates[0].PrivateKey)
	must(err)
	for name, b := range map[string]pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: conf.Certificates[0].Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: der},
		"ca.crt": {Type: "CERTIFICATE", Bytes: c.cert.Raw},
	} {
		must(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&b), 0o600))
	}
	key = filepath.Join(dir, "tls.key")
	return keyring.TLSFiles(filepath.Join(dir, "tls.crt"), key, filepath.Join(dir, "ca.crt")), key
}

func (c *ca) pool() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(c.cert)
	return roots
}

// sign makes a certificate that is valid for a day; the first is the CA's own.
func (c *ca) sign(template *x509.Certificate, change ...func(*x509.Certificate)) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	must(err)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	for _, f := range change {
		f(template)
	}
	parent, signer := c.cert, c.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(err)
	leaf, err := x509.ParseCertificate(der)
	must(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

package port_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// app stands in for the FSM of the example's host.
type app struct{ keyringtest.NullFSM }

// exampleFiles returns a directory with the files that a PKI gives to a server.
func exampleFiles(id raft.ServerID) (dir string) {
	dir, err := os.MkdirTemp("", "port")
	if err != nil {
		log.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	caKey := exampleKey()
	own := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		URIs:        []*url.URL{{Scheme: "keyring", Host: "prod", Path: "/server/" + string(id)}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	key := exampleKey()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		log.Fatal(err)
	}
	writeExample(dir, "ca.crt", "CERTIFICATE", exampleCertificate(ca, ca, caKey, caKey))
	writeExample(dir, "tls.crt", "CERTIFICATE", exampleCertificate(own, ca, key, caKey))
	writeExample(dir, "tls.key", "PRIVATE KEY", der)
	return dir
}

func exampleKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	return key
}

func exampleCertificate(template, by *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, signer)
	if err != nil {
		log.Fatal(err)
	}
	return der
}

func writeExample(dir, name, kind string, der []byte) {
	if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		log.Fatal(err)
	}
}

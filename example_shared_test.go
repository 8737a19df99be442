package keyring_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log"
	"math/big"
	"net/url"
	"time"

	"example.com/keyring"
)

// exampleCA stands in for the CA of the examples' hosts. Real ones read their certificates from files, with keyring.TLSFiles.
type exampleCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newExampleCA() *exampleCA {
	ca := &exampleCA{}
	own := ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	ca.cert, ca.key = own.Leaf, own.PrivateKey.(*ecdsa.PrivateKey)
	return ca
}

// source returns a certificate with that URI as ServerTLS and ClientTLS want it.
func (ca *exampleCA) source(uri string) func() (*tls.Config, error) {
	u, err := url.Parse(uri)
	if err != nil {
		log.Fatal(err)
	}
	own := ca.sign(&x509.Certificate{
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return func() (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: roots}, nil
	}
}

// sign makes a certificate that is valid for an hour; the first is the CA's own.
func (ca *exampleCA) sign(template *x509.Certificate) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		log.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		log.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		log.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// rotateAndSeal has the leader rotate, and seal under the new key. It tries again when the leader changes.
func rotateAndSeal(ctx context.Context, keys []*keyring.Keyring, plaintext []byte) ([]byte, error) {
	for {
		changed := []<-chan struct{}{keys[0].Changed(), keys[1].Changed(), keys[2].Changed()}
		for _, k := range keys {
			_, err := k.Rotate(ctx, keyring.RotateOptions{})
			if err == nil {
				var sealed []byte
				if sealed, err = k.Encrypt(plaintext, nil); err == nil {
					return sealed, nil
				}
			}
			if !errors.Is(err, keyring.ErrNotLeader) && !errors.Is(err, keyring.ErrNotReady) {
				return nil, err
			}
		}
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-changed[2]:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// openSoon opens what was sealed a moment ago: a server may hear of the key after the others.
func openSoon(ctx context.Context, k *keyring.Keyring, sealed []byte) ([]byte, error) {
	for {
		changed := k.Changed()
		plaintext, err := k.Decrypt(sealed, nil)
		if !errors.Is(err, keyring.ErrUnknownKey) && !errors.Is(err, keyring.ErrKeyMissing) {
			return plaintext, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, err
		}
	}
}

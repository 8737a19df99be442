package peer

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// A server whose own certificate is not in order would learn of it from the others alone, one by one. What can be told here
// is told before.

// errOwn is how errors about this server's own certificate begin.
const errOwn = "own certificate"

// CheckOwn requires that this server's certificate names it, and that its private key is the certificate's. A certificate
// that comes from a callback is not looked at.
func CheckOwn(base *tls.Config, want Identity) error {
	leaf, err := ownLeaf(base)
	if err != nil || leaf == nil {
		return err
	}
	id, err := ParseIdentity(leaf)
	if err != nil {
		return fmt.Errorf("%s: %w", errOwn, err)
	}
	if id != want {
		return fmt.Errorf("%s is that of %s, want %s", errOwn, id, want)
	}
	key, ok := base.Certificates[0].PrivateKey.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%s has no private key", errOwn)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return fmt.Errorf("%s and its private key do not belong together", errOwn)
	}
	return nil
}

// CheckOwnNow requires that a server which has the CAs of this one would accept its certificate, now: it is in its time, and
// the CAs vouch for it, as a server and as a client. A certificate that comes from a callback is not looked at.
func CheckOwnNow(base *tls.Config) error {
	leaf, err := ownLeaf(base)
	if err != nil || leaf == nil {
		return err
	}
	at := time.Now()
	if base.Time != nil {
		at = base.Time()
	}
	if at.After(leaf.NotAfter) || at.Before(leaf.NotBefore) {
		return fmt.Errorf("own %s", validity(leaf, at))
	}
	var chain []*x509.Certificate
	for _, der := range base.Certificates[0].Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("%s: %w", errOwn, err)
		}
		chain = append(chain, c)
	}
	if err := vouched(base, "RootCAs", base.RootCAs, x509.ExtKeyUsageServerAuth, chain); err != nil {
		return err // the other use fails for the same cause, most often
	}
	return vouched(base, "ClientCAs", base.ClientCAs, x509.ExtKeyUsageClientAuth, chain)
}

// vouched requires that CAs vouch for this server's own certificate, with one use.
func vouched(base *tls.Config, name string, cas *x509.CertPool, usage x509.ExtKeyUsage, chain []*x509.Certificate) error {
	if cas == nil {
		name, cas = "RootCAs", base.RootCAs
	}
	_, err := verifyChain(base, cas, usage, chain)
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return fmt.Errorf("%s is from another CA than those in %s: %w", errOwn, name, err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("own %s: %w", validity(invalid.Cert, time.Now()), err)
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("%s is not for both server and client authentication: %w", errOwn, err)
	}
	return fmt.Errorf("%s: %w", errOwn, err)
}

// ownLeaf returns this server's own certificate, or nil if that comes from a callback.
func ownLeaf(base *tls.Config) (*x509.Certificate, error) {
	if base == nil || len(base.Certificates) == 0 || len(base.Certificates[0].Certificate) == 0 {
		return nil, nil
	}
	leaf, err := x509.ParseCertificate(base.Certificates[0].Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", errOwn, err)
	}
	return leaf, nil
}

package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// Channel is what the two ends of one connection know about it, and nobody else. Both ends can bind messages to it.
type Channel struct {
	Exporter []byte // tls-exporter of RFC 9266, 32 bytes
	Own      []byte // public key of the certificate that this end has shown, in DER
	Other    []byte // the same of the other end
}

// Channel returns the channel binding of the connection.
func (c *Conn) Channel() (Channel, error) {
	state := c.ConnectionState()
	exporter, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return Channel{}, fmt.Errorf("channel: %w", err)
	}
	own, err := c.shown.leaf()
	if err != nil {
		return Channel{}, fmt.Errorf("channel: %w", err)
	}
	return Channel{exporter, own.RawSubjectPublicKeyInfo, state.PeerCertificates[0].RawSubjectPublicKeyInfo}, nil
}

// shown is the certificate that this end of a connection has shown: crypto/tls does not tell. The handshake
// sets it, once, before it is read.
type shown struct{ cert *tls.Certificate }

type shownKey struct{}

// note returns a context for a handshake, in which the certificate that is chosen is noted in s.
func (s *shown) note(ctx context.Context) context.Context {
	return context.WithValue(ctx, shownKey{}, s)
}

func noteShown(ctx context.Context, cert *tls.Certificate) {
	if s, ok := ctx.Value(shownKey{}).(*shown); ok {
		s.cert = cert
	}
}

func (s *shown) leaf() (*x509.Certificate, error) {
	if s == nil || s.cert == nil || len(s.cert.Certificate) == 0 {
		return nil, errors.New("the certificate of the connection is not known")
	}
	if s.cert.Leaf != nil {
		return s.cert.Leaf, nil
	}
	return x509.ParseCertificate(s.cert.Certificate[0])
}

// shownByServer chooses a certificate as crypto/tls does, and notes it.
func shownByServer(base *tls.Config) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := chooseServers(base, hello)
		if err == nil {
			noteShown(hello.Context(), cert)
		}
		return cert, err
	}
}

func chooseServers(base *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if base.GetCertificate != nil && (len(base.Certificates) == 0 || hello.ServerName != "") {
		if cert, err := base.GetCertificate(hello); cert != nil || err != nil {
			return cert, err
		}
	}
	if len(base.Certificates) == 0 {
		return nil, errors.New("TLS: no certificate to answer with")
	}
	for i := range base.Certificates {
		if hello.SupportsCertificate(&base.Certificates[i]) == nil {
			return &base.Certificates[i], nil
		}
	}
	return &base.Certificates[0], nil
}

// shownByClient chooses a certificate as crypto/tls does, and notes it.
func shownByClient(choose func(*tls.CertificateRequestInfo) (*tls.Certificate, error), certs []tls.Certificate,
) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := chooseClients(choose, certs, r)
		if err == nil {
			noteShown(r.Context(), cert)
		}
		return cert, err
	}
}

func chooseClients(choose func(*tls.CertificateRequestInfo) (*tls.Certificate, error), certs []tls.Certificate,
	r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if choose != nil {
		return choose(r)
	}
	for i := range certs {
		if r.SupportsCertificate(&certs[i]) == nil {
			return &certs[i], nil
		}
	}
	return new(tls.Certificate), nil // none: the other end refuses
}

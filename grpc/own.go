package keyringgrpc

// Which certificate this side shows on a connection: crypto/tls does not tell.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// own is the certificate that this side has shown. The handshake sets it, before it is read.
type own struct{ leaf *x509.Certificate }

// noting returns a source of what another one has returned, in which the certificate that is chosen is noted.
func (o *own) noting(base *tls.Config, err error) func() (*tls.Config, error) {
	if base == nil {
		return func() (*tls.Config, error) { return nil, err }
	}
	c := base.Clone()
	c.Certificates = nil
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return o.note(forServer(base, hello)) }
	c.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.note(forClient(base, r)) }
	return func() (*tls.Config, error) { return c, err }
}

func (o *own) note(cert *tls.Certificate, err error) (*tls.Certificate, error) {
	if err == nil && cert != nil {
		o.leaf, _ = leafOf(cert)
	}
	return cert, err
}

func leafOf(cert *tls.Certificate) (*x509.Certificate, error) {
	if cert.Leaf != nil {
		return cert.Leaf, nil
	}
	if len(cert.Certificate) == 0 {
		return nil, errors.New("it is empty")
	}
	return x509.ParseCertificate(cert.Certificate[0])
}

// forServer chooses as crypto/tls does.
func forServer(base *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if base.GetCertificate != nil && (len(base.Certificates) == 0 || hello.ServerName != "") {
		if cert, err := base.GetCertificate(hello); cert != nil || err != nil {
			return cert, err
		}
	}
	if len(base.Certificates) == 0 {
		return nil, errors.New("no certificate to answer with")
	}
	for i := range base.Certificates {
		if hello.SupportsCertificate(&base.Certificates[i]) == nil {
			return &base.Certificates[i], nil
		}
	}
	return &base.Certificates[0], nil
}

// forClient chooses as crypto/tls does, and takes the server's hook where there is nothing else.
func forClient(base *tls.Config, r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	switch {
	case base.GetClientCertificate != nil:
		return base.GetClientCertificate(r)
	case len(base.Certificates) == 0 && base.GetCertificate != nil:
		return base.GetCertificate(&tls.ClientHelloInfo{SignatureSchemes: r.SignatureSchemes, SupportedVersions: []uint16{tls.VersionTLS13}})
	}
	for i := range base.Certificates {
		if r.SupportsCertificate(&base.Certificates[i]) == nil {
			return &base.Certificates[i], nil
		}
	}
	return new(tls.Certificate), nil // none: the other end refuses
}

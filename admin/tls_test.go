package admin

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"example.com/keyring"
	"example.com/keyring/node"
)

// Over TLS an operator may be who the certificate says, and HTTP/2 has the deadlines and trailers too.
func TestOperatorsHaveCertificates(t *testing.T) {
	s := alone(t, func(c *Config, _ *node.Config) {
		c.Authorize = func(r *http.Request) (string, error) {
			if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
				return "", errors.New("no certificate")
			}
			return r.TLS.PeerCertificates[0].Subject.Organization[0], nil
		}
	})
	protocols := map[string]bool{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protocols[r.Proto] = true
		s.ServeHTTP(w, r)
	}))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	defer server.Close()

	c, err := NewClient(server.URL, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	if refused := (*Error)(nil); !errors.As(c.Adopt(t.Context(), keyring.KeyID{1}), &refused) || refused.Status != http.StatusForbidden || refused.Text != "not allowed: no certificate" {
		t.Errorf("without a certificate: %+v", refused)
	}
	operator := server.Client().Transport.(*http.Transport).Clone()
	operator.TLSClientConfig.Certificates = server.TLS.Certificates // any will do
	if c, err = NewClient(server.URL, &http.Client{Transport: operator}); err != nil {
		t.Fatal(err)
	}
	identity := newIdentity(t)
	var b bytes.Buffer
	made, err := c.Backup(t.Context(), &b, identity.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	if m, err := keyring.VerifyBackup(&b, identity); err != nil || m.SHA256 != made.SHA256 || m.Signer != made.Signer {
		t.Errorf("%+v, %+v, %v", made, m, err)
	}
	if _, err := c.Rotate(t.Context(), keyring.RotateOptions{}); err != nil || !protocols["HTTP/2.0"] || len(protocols) != 1 {
		t.Errorf("%v, over %v", err, protocols)
	}
}

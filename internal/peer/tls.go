package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ALPN names the protocol that runs on a connection.
const (
	ALPNRaft = "keyring-raft/1"
	ALPNPeer = "keyring-peer/1"
)

// AnyServer, as a server ID, stands for any server of the cluster: a server that joins does not know yet which one
// it meets.
const AnyServer = ""

// Source returns the host's part of a TLS configuration: Certificates, GetCertificate or
// GetClientCertificate; RootCAs, which is required; ClientCAs, which nil means RootCAs. It
// is called for every connection, so that certificates can be replaced, and must not
// block. What it returns is not modified.
//
// VerifyPeerCertificate and VerifyConnection are called in both directions, after all checks of this package, and again in each Recheck.
// Versions, client authentication, session tickets, key exchanges, names and ALPN are set by this package, and a KeyLogWriter
// is left out.
type Source func() (*tls.Config, error)

// ServerConfig returns the configuration that admits only servers of the cluster: with TLS 1.3, with a certificate
// that chains to ClientCAs, is valid for client authentication and has the server role, that ask for one of the
// protocols, and that pass check. check is the membership test; it is called in every handshake, with the
// protocol. No session is resumed, because that would skip these checks.
func ServerConfig(source Source, cluster string, check func(Identity, string) error, protocols ...string) (*tls.Config, error) {
	if err := checkNames(cluster, protocols); err != nil {
		return nil, err
	}
	build := func() (*tls.Config, error) { return serverConfig(source, cluster, check, protocols) }
	if _, err := build(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true,
		GetConfigForClient:     func(*tls.ClientHelloInfo) (*tls.Config, error) { return build() },
	}, nil
}

func serverConfig(source Source, cluster string, check func(Identity, string) error, protocols []string) (*tls.Config, error) {
	base, err := Load(source)
	if err != nil {
		return nil, err
	}
	if len(base.Certificates) == 0 && base.GetCertificate == nil {
		return nil, errors.New("TLS: no certificate to answer with")
	}
	c := common(base)
	c.Certificates, c.GetCertificate = nil, shownByServer(base)
	c.NextProtos = protocols
	c.ClientAuth = tls.RequireAndVerifyClientCert
	if c.ClientCAs == nil {
		c.ClientCAs = base.RootCAs
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := ServerOf(cluster, cs)
		if err != nil {
			return err
		}
		if cs.NegotiatedProtocol == "" {
			return fmt.Errorf("%s asks for no protocol", id)
		}
		if err := check(id, cs.NegotiatedProtocol); err != nil {
			return fmt.Errorf("certificate of %s: %w", id, err)
		}
		return hostChecks(base, cs)
	}
	return c, nil
}

// ClientConfig returns the configuration for one connection to the server of that ID in the
// cluster: TLS 1.3 and one of the protocols, a certificate that chains to RootCAs and is valid
// for server authentication. The identity in it is compared, instead of a host name.
// With AnyServer as the server any ID is accepted, and everything else is checked.
func ClientConfig(source Source, cluster, server string, protocols ...string) (*tls.Config, error) {
	if err := checkNames(cluster, protocols); err != nil {
		return nil, err
	}
	base, err := Load(source)
	if err != nil {
		return nil, err
	}
	c := common(base)
	c.NextProtos = protocols
	c.ServerName = ""
	choose, err := clientCertificate(base)
	if err != nil {
		return nil, err
	}
	c.GetClientCertificate = shownByClient(choose, base.Certificates)
	// Not insecure: VerifyConnection does all that this leaves out, but for the host name.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		var err error
		if cs.VerifiedChains, err = verifyServer(base, cs.PeerCertificates); err != nil {
			return err
		}
		id, err := ServerOf(cluster, cs)
		if err != nil {
			return err
		}
		if server != AnyServer && id.ID != server {
			return otherServer{fmt.Errorf("certificate of %s: server %q, want %q", id, id.ID, server)}
		}
		if !slices.Contains(protocols, cs.NegotiatedProtocol) {
			return fmt.Errorf("%s does not speak %s", id, strings.Join(protocols, " or "))
		}
		return hostChecks(base, cs)
	}
	return c, nil
}

// checkNames refuses names that would never match, or would admit the certificates of one port at another.
func checkNames(cluster string, protocols []string) error {
	if !validCluster(cluster) {
		return fmt.Errorf("TLS: cluster %q is not 1 or more letters, digits, dots, dashes and underscores", cluster)
	}
	if len(protocols) == 0 || slices.Contains(protocols, "") {
		return errors.New("TLS: no protocol (ALPN) is named, or an empty one")
	}
	return nil
}

// Load returns what a Source returns, if that is of use: with RootCAs.
func Load(source Source) (*tls.Config, error) {
	base, err := source()
	if err != nil && (base == nil || !errors.Is(err, ErrKept)) {
		return nil, fmt.Errorf("TLS configuration: %w", err)
	}
	if base == nil || base.RootCAs == nil {
		// crypto/tls would take the system's roots, which vouch for the whole internet.
		return nil, errors.New("TLS: RootCAs is required")
	}
	return base, nil
}

// curves are the key exchanges of a connection: those that hold against a quantum computer first, for who records traffic now
// may have one later. crypto/tls has an order of its own, in which they come first too, and this set is its default's.
var curves = []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

// common is what both directions have in common.
func common(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.MinVersion = tls.VersionTLS13
	c.MaxVersion = tls.VersionTLS13
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	c.GetConfigForClient = nil
	c.VerifyPeerCertificate = nil // hostChecks
	c.InsecureSkipVerify = false
	c.EncryptedClientHelloConfigList = nil
	c.CurvePreferences = curves
	c.KeyLogWriter = nil // who reads it reads every key that crosses the wire
	return c
}

// clientCertificate picks the host's certificate for dialling, which may come from the
// hook that crypto/tls asks on the other side only.
func clientCertificate(base *tls.Config) (func(*tls.CertificateRequestInfo) (*tls.Certificate, error), error) {
	if base.GetClientCertificate != nil || len(base.Certificates) > 0 {
		return base.GetClientCertificate, nil
	}
	if base.GetCertificate == nil {
		return nil, errors.New("TLS: no certificate to dial with")
	}
	return func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return base.GetCertificate(&tls.ClientHelloInfo{
			SignatureSchemes:  r.SignatureSchemes,
			SupportedVersions: []uint16{tls.VersionTLS13},
		})
	}, nil
}

// verifyServer verifies the chain, which InsecureSkipVerify leaves out.
func verifyServer(base *tls.Config, certs []*x509.Certificate) ([][]*x509.Certificate, error) {
	return verifyChain(base, base.RootCAs, x509.ExtKeyUsageServerAuth, certs)
}

// ServerOf returns the identity on a connection whose chain is verified, if it is a server
// of the cluster.
func ServerOf(cluster string, cs tls.ConnectionState) (Identity, error) {
	id, err := identityOf(cs)
	if err != nil {
		return Identity{}, err
	}
	if id.Role != RoleServer {
		return Identity{}, otherServer{fmt.Errorf("certificate of %s: role %q, want %q", id, id.Role, RoleServer)}
	}
	if id.Cluster != cluster {
		return Identity{}, otherServer{fmt.Errorf("certificate of %s: cluster %q, want %q", id, id.Cluster, cluster)}
	}
	return id, nil
}

func identityOf(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 || len(cs.VerifiedChains) == 0 {
		return Identity{}, errors.New("no verified certificate")
	}
	return ParseIdentity(cs.PeerCertificates[0])
}

// hostChecks calls what the host configured. With our own verification crypto/tls would
// call VerifyPeerCertificate too early, and without chains.
func hostChecks(base *tls.Config, cs tls.ConnectionState) error {
	if base.VerifyPeerCertificate != nil {
		raw := make([][]byte, 0, len(cs.PeerCertificates))
		for _, c := range cs.PeerCertificates {
			raw = append(raw, c.Raw)
		}
		if err := base.VerifyPeerCertificate(raw, cs.VerifiedChains); err != nil {
			return err
		}
	}
	if base.VerifyConnection != nil {
		return base.VerifyConnection(cs)
	}
	return nil
}

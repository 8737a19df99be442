package peer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const (
	scheme = "keyring"

	// RoleServer is the role of a server's certificate. Other certificates of the same CA may have other
	// roles, and none of those gets a connection.
	RoleServer = "server"
)

// Identity is the server that a certificate names. Cluster is the name in the host's configuration: letters, digits,
// dots, dashes and underscores. ID is any text.
type Identity struct {
	Cluster string
	Role    string
	ID      string
}

// URI returns keyring://<cluster>/<role>/<id>, the form that certificates carry as a URI
// SAN. Role and ID are path-escaped.
func (i Identity) URI() *url.URL {
	return &url.URL{
		Scheme:  scheme,
		Host:    i.Cluster,
		Path:    "/" + i.Role + "/" + i.ID,
		RawPath: "/" + url.PathEscape(i.Role) + "/" + url.PathEscape(i.ID),
	}
}

// String returns the text of the URI.
func (i Identity) String() string { return i.URI().String() }

// ParseIdentity returns the identity in a certificate, which has exactly one keyring URI,
// in the one form that Identity.URI has. It says nothing about who issued it.
func ParseIdentity(cert *x509.Certificate) (Identity, error) {
	var found []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == scheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("certificate with %d keyring URIs, want 1", len(found))
	}
	i, err := parseURI(found[0])
	if err != nil {
		return Identity{}, fmt.Errorf("certificate of %.300q: %w", found[0], err)
	}
	return i, nil
}

// parseURI takes the URI apart and puts it together again: what does not come out the same
// has a query, a port, a user, or another spelling of the ID.
func parseURI(u *url.URL) (Identity, error) {
	parts := strings.Split(u.EscapedPath(), "/")
	if len(parts) != 3 {
		return Identity{}, errors.New("want keyring://<cluster>/<role>/<id>")
	}
	role, errRole := url.PathUnescape(parts[1])
	id, errID := url.PathUnescape(parts[2])
	i := Identity{u.Host, role, id}
	if errRole != nil || errID != nil || i.String() != u.String() {
		return Identity{}, errors.New("not in the canonical form")
	}
	if role == "" || checkText(id) != nil || !validCluster(i.Cluster) {
		return Identity{}, errors.New("no role, or not the name of a cluster or server")
	}
	return i, nil
}

func validCluster(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	return s != "" && strings.Trim(s, letters) == ""
}

package peer_test

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"

	"example.com/keyring/internal/peer"
)

func TestIdentityTravelsInACertificate(t *testing.T) {
	a := newCA(t)
	for _, want := range []peer.Identity{
		{Cluster: "prod-1", Role: "server", ID: "a"},
		{Cluster: "eu.prod_1", Role: "client", ID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
		{Cluster: "UP", Role: "server", ID: "a/b?c#d%2F e@:8"},
		{Cluster: "x", Role: "server", ID: ".."},
		{Cluster: "x", Role: "two words", ID: "Zürich"},
	} {
		cert, err := x509.ParseCertificate(a.issue([]string{"spiffe://prod/a", want.URI().String()}).Certificate[0])
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if got, err := peer.ParseIdentity(cert); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", want, got, err)
		}
	}
	if got, want := (peer.Identity{Cluster: "c", Role: "server", ID: "a/b"}).String(), "keyring://c/server/a%2Fb"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestParseIdentityRefuses(t *testing.T) {
	for _, uris := range []string{
		"",
		"https://c/server/a",
		"keyring://c/server/a keyring://c/server/b",
		"keyring://c/server/a keyring://c/server/a",
		"keyring:///server/a",
		"keyring://c",
		"keyring://c/server",
		"keyring://c/server/",
		"keyring://c//a",
		"keyring://c/server/a/",
		"keyring://c/server/a/b",
		"keyring://c/server/%61",
		"keyring://c/server/a%2fb",
		"keyring://c/server/a?b",
		"keyring://c/server/a?",
		"keyring://c/server/a#b",
		"keyring://user@c/server/a",
		"keyring://c:80/server/a",
		"keyring://[::1]/server/a",
		"keyring:c/server/a",
		"keyring://c/server/%FF",
		"keyring://c/server/" + strings.Repeat("a", 256),
	} {
		cert := &x509.Certificate{}
		for s := range strings.FieldsSeq(uris) {
			u, err := url.Parse(s)
			if err != nil {
				t.Errorf("%s: %v", s, err)
				continue
			}
			cert.URIs = append(cert.URIs, u)
		}
		if id, err := peer.ParseIdentity(cert); err == nil {
			t.Errorf("%q is %+v", uris, id)
		}
	}
}

package keyring_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

const discoveryPath = "/.well-known/openid-configuration"

func TestWellKnownServesTheJWKS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, nil)
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		etags := map[string]bool{}
		for _, s := range c.Servers {
			h := s.Keyring.WellKnown()
			r := keyringtest.Request(h, "GET", keyringtest.JWKSPath)
			if b := keyringtest.Body(t, r); r.StatusCode != 200 || b != string(s.Keyring.JWKS()) {
				t.Errorf("%s: %d %s", s.ID, r.StatusCode, b)
			}
			for name, want := range map[string]string{
				"Content-Type": "application/jwk-set+json", "Cache-Control": "public, max-age=300", "Access-Control-Allow-Origin": "*",
				"Content-Length": fmt.Sprint(len(s.Keyring.JWKS())),
			} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("%s: %s is %q, want %q", s.ID, name, got, want)
				}
			}
			etag := r.Header.Get("ETag")
			etags[etag] = true
			head := keyringtest.Request(h, "HEAD", keyringtest.JWKSPath)
			if b := keyringtest.Body(t, head); head.StatusCode != 200 || b != "" || head.Header.Get("ETag") != etag {
				t.Errorf("%s: HEAD: %d %q", s.ID, head.StatusCode, b)
			}
			for _, tt := range []struct {
				match string
				want  int
			}{{etag, 304}, {`"x", ` + etag, 304}, {"W/" + etag, 304}, {"*", 304}, {`"x"`, 200}} {
				r := keyringtest.Request(h, "GET", keyringtest.JWKSPath, "If-None-Match", tt.match)
				if b := keyringtest.Body(t, r); r.StatusCode != tt.want || (b == "") != (tt.want == 304) || r.Header.Get("Cache-Control") == "" {
					t.Errorf("%s: If-None-Match %s: %d %q", s.ID, tt.match, r.StatusCode, b)
				}
			}
		}
		if len(etags) != 1 || etags[""] {
			t.Errorf("ETags of three servers with the same keys: %v", etags)
		}
		old := keyringtest.Request(leader.Keyring.WellKnown(), "GET", keyringtest.JWKSPath).Header.Get("ETag")
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if r := keyringtest.Request(leader.Keyring.WellKnown(), "GET", keyringtest.JWKSPath, "If-None-Match", old); r.StatusCode != 200 {
			t.Errorf("after a rotation the ETag is the same: %d", r.StatusCode)
		}
		if got := keyringtest.KeyIDs(t, leader.Keyring.JWKS()); len(got) != 2 || got[0] != leader.Keyring.Keys()[0].ID {
			t.Errorf("the active key is not the first of %v", got)
		}
	})
}

// TestWellKnownAnswersNothingElse: no other method, no other path.
func TestWellKnownAnswersNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, nil)
		h := keyringtest.Ready(t, c).Keyring.WellKnown()
		for _, path := range []string{keyringtest.JWKSPath, discoveryPath} {
			for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "TRACE"} {
				if r := keyringtest.Request(h, method, path); r.StatusCode != http.StatusMethodNotAllowed || !strings.Contains(r.Header.Get("Allow"), "GET, HEAD") {
					t.Errorf("%s %s: %d, Allow %q", method, path, r.StatusCode, r.Header.Get("Allow"))
				}
			}
			r := keyringtest.Request(h, "OPTIONS", path, "Origin", "https://page.example", "Access-Control-Request-Method", "GET")
			if r.StatusCode != 204 || r.Header.Get("Access-Control-Allow-Origin") != "*" || r.Header.Get("Access-Control-Allow-Methods") != "GET, HEAD" {
				t.Errorf("preflight of %s: %d %v", path, r.StatusCode, r.Header)
			}
		}
		for _, path := range []string{"/", "/.well-known/", "/.well-known/jwks", keyringtest.JWKSPath + "/", "/x" + keyringtest.JWKSPath} {
			if r := keyringtest.Request(h, "GET", path); r.StatusCode != 404 {
				t.Errorf("GET %s: %d", path, r.StatusCode)
			}
		}
	})
}

func TestDiscoveryNamesTheIssuer(t *testing.T) {
	t.Parallel()
	for issuer, jwks := range map[string]string{
		"https://issuer.example":     "https://issuer.example" + keyringtest.JWKSPath,
		"https://issuer.example/":    "https://issuer.example" + keyringtest.JWKSPath,
		"http://localhost:8080/a/b/": "http://localhost:8080/a/b" + keyringtest.JWKSPath,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Tokens.Issuer = issuer })
			k := keyringtest.Ready(t, c).Keyring
			r := keyringtest.Request(k.WellKnown(), "GET", discoveryPath)
			var doc struct {
				Issuer string
				JWKS   string   `json:"jwks_uri"`
				Algs   []string `json:"id_token_signing_alg_values_supported"`
				Types  []string `json:"response_types_supported"`
				Subs   []string `json:"subject_types_supported"`
			}
			if err := json.Unmarshal([]byte(keyringtest.Body(t, r)), &doc); err != nil {
				t.Fatal(err)
			}
			if r.StatusCode != 200 || doc.Issuer != issuer || doc.JWKS != jwks || !slices.Contains(doc.Algs, "RS256") ||
				len(doc.Types) == 0 || len(doc.Subs) == 0 || r.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%d %+v", r.StatusCode, doc)
			}
			// Below the issuer's path, as the documentation says.
			prefix := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(issuer, "https://issuer.example"), "http://localhost:8080"), "/")
			if r := keyringtest.Request(http.StripPrefix(prefix, k.WellKnown()), "GET", prefix+discoveryPath); r.StatusCode != 200 {
				t.Errorf("below %q: %d", prefix, r.StatusCode)
			}
		})
	}
}

// TestEachIssuerHasItsDiscoveryDocument: of the same name as the URL where it is found, and all with the one JWKS.
func TestEachIssuerHasItsDiscoveryDocument(t *testing.T) {
	t.Parallel()
	const own, other, elsewhere = "https://issuer.example", "https://other.example/a/", "https://cdn.example/keys?of=issuer"
	for _, jwksURL := range []string{"", elsewhere} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) {
				cfg.Tokens.Issuer, cfg.Tokens.AcceptIssuers, cfg.Tokens.JWKSURL = own, []string{other, ""}, jwksURL
			})
			k := keyringtest.Ready(t, c).Keyring
			for issuer, jwks := range map[string]string{own: own + keyringtest.JWKSPath, other: "https://other.example/a" + keyringtest.JWKSPath} {
				r := keyringtest.Request(k.WellKnownFor(issuer), "GET", discoveryPath)
				var doc struct {
					Issuer string
					JWKS   string `json:"jwks_uri"`
				}
				if err := json.Unmarshal([]byte(keyringtest.Body(t, r)), &doc); err != nil || doc.Issuer != issuer || doc.JWKS != cmp.Or(jwksURL, jwks) {
					t.Errorf("%s: %+v, %v", issuer, doc, err)
				}
				if r := keyringtest.Request(k.WellKnownFor(issuer), "GET", keyringtest.JWKSPath); keyringtest.Body(t, r) != string(k.JWKS()) {
					t.Errorf("%s: the JWKS: %d", issuer, r.StatusCode)
				}
			}
			for _, issuer := range []string{"", "https://third.example", own + "/", "https://other.example/a"} {
				if r := keyringtest.Request(k.WellKnownFor(issuer), "GET", discoveryPath); r.StatusCode != 404 {
					t.Errorf("%q: %d", issuer, r.StatusCode)
				}
			}
		})
	}
}

func TestDiscoveryWithoutIssuerSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		h := keyringtest.Ready(t, c).Keyring.WellKnown()
		if r := keyringtest.Request(h, "GET", discoveryPath); r.StatusCode != 404 || !strings.Contains(keyringtest.Body(t, r), "issuer") {
			t.Errorf("%d", r.StatusCode)
		}
		if r := keyringtest.Request(h, "GET", keyringtest.JWKSPath); r.StatusCode != 200 {
			t.Errorf("the JWKS: %d", r.StatusCode)
		}
	})
}

// TestMaxAgeIsTheSmallerOfLeadAndFiveMinutes, and nothing is to be cached before there is a key.
func TestMaxAgeIsTheSmallerOfLeadAndFiveMinutes(t *testing.T) {
	t.Parallel()
	for lead, want := range map[time.Duration]string{
		0: "public, max-age=300", 5 * time.Minute: "public, max-age=300", 299 * time.Second: "public, max-age=299",
		1500 * time.Millisecond: "public, max-age=1",
	} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Rotation.Lead = lead })
			h := c.Servers[0].Keyring.WellKnown()
			if r := keyringtest.Request(h, "GET", keyringtest.JWKSPath); r.Header.Get("Cache-Control") != "no-store" || r.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("before the server has caught up: %d %s", r.StatusCode, r.Header.Get("Cache-Control"))
			}
			keyringtest.Ready(t, c)
			for _, path := range []string{keyringtest.JWKSPath, discoveryPath} {
				if got := keyringtest.Request(h, "GET", path).Header.Get("Cache-Control"); got != want {
					t.Errorf("lead %v: %s: %s, want %s", lead, path, got, want)
				}
			}
		})
	}
}

// TestJWKSIsMadeOnce: what is served comes from memory, and nobody can change it there.
func TestJWKSIsMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		k := keyringtest.Ready(t, c).Keyring
		first := k.JWKS()
		want := bytes.Clone(first)
		clear(first)
		if !bytes.Equal(k.JWKS(), want) {
			t.Error("a caller has changed the JWKS")
		}
		if n := testing.AllocsPerRun(100, func() { k.JWKS() }); n > 1 {
			t.Errorf("%v allocations", n)
		}
	})
}

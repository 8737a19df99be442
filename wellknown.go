package keyring

// JWKS and WellKnown: what relying parties need.

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/plan"
)

// Where relying parties look, below the issuer.
const (
	pathJWKS      = "/.well-known/jwks.json"
	pathDiscovery = "/.well-known/openid-configuration"
)

// JWKS returns the JSON Web Key Set (RFC 7517) with the public half of every key whose tokens
// verify, and of those that are prepublished. It is the same on every server that has applied as
// much, and needs no material. It is nil where WellKnown answers 503.
func (k *Keyring) JWKS() []byte {
	_, err := k.verifier.jwksAge()
	if err != nil {
		return nil
	}
	return bytes.Clone(k.verifier.keys(k.server.Now()).document().body)
}

// jwksAge is for how long the JWKS may be cached. The error says that this server has none to show. Ask
// it before the ring is read.
func (v *verifier) jwksAge() (time.Duration, error) {
	if err := v.caughtUp.Outdated(); err != nil {
		return 0, err
	}
	silence := v.Silence()
	if !v.IsLost(silence) {
		silence = 0
	}
	age, ok := plan.MaxAge(v.FSM.Ring(), v.cfg.policy(), silence)
	if !ok {
		return 0, local.LostLeader(silence)
	}
	return age, nil
}

// WellKnown serves what relying parties need, to anyone, on any server:
// /.well-known/jwks.json, the JWKS, and /.well-known/openid-configuration, which names it and the
// issuer (OpenID Connect Discovery 1.0). The latter is 404 without TokenPolicy.Issuer. If the
// issuer has a path, serve the handler below it, behind http.StripPrefix. With TokenPolicy.JWKSURL the document names
// that, and the host sees to it that this handler's JWKS, or what JWKS returns, is found there.
//
// Answers may be cached for RotationPolicy.Lead, and never longer than five minutes: so a
// verifier that does so knows each scheduled key before it signs. After Rotate without Publish it has to fetch the JWKS once
// more when it meets a kid that it does not know, which some do minutes later: see Rotate.
//
// A server that has not caught up with a leader since its start answers 503, not to be stored, where
// the JWKS is asked for. One that hears from no leader any more takes that time off the time for which
// its answer may be cached, so that no verifier has a JWKS that is older than it may be; and after an
// hour, or RotationPolicy.Lead if that is less, it answers 503 too: a key may have been revoked
// elsewhere, or have begun to sign.
func (k *Keyring) WellKnown() http.Handler { return k.WellKnownFor(k.server.cfg.Tokens.Issuer) }

// WellKnownFor is WellKnown for one of the issuers of TokenPolicy, Issuer or one of AcceptIssuers: its discovery document has
// that issuer, because a relying party refuses one with another issuer than the URL where it looks. The JWKS is the same.
// A host that serves several issuers serves a handler for each, by the name or the path of the request. For any other
// issuer, and for an empty one, the discovery document is 404.
func (k *Keyring) WellKnownFor(issuer string) http.Handler {
	policy := k.server.cfg.Tokens
	known := issuer != "" && (issuer == policy.Issuer || slices.Contains(policy.AcceptIssuers, issuer))
	discovery := newDiscovery(issuer, policy.JWKSURL)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathJWKS, func(w http.ResponseWriter, r *http.Request) {
		age, err := k.verifier.jwksAge()
		if err != nil { // which may name other servers
			unavailable(w)
			return
		}
		serveDocument(w, r, "application/jwk-set+json", age, k.verifier.keys(k.server.Now()).document())
	})
	mux.HandleFunc("GET "+pathDiscovery, func(w http.ResponseWriter, r *http.Request) {
		if !known {
			http.Error(w, "no issuer of this name is in TokenPolicy, or none at all", http.StatusNotFound)
			return
		}
		age, _ := plan.MaxAge(k.server.FSM.Ring(), k.server.cfg.policy(), 0) // it is of the configuration, and never stale
		serveDocument(w, r, "application/json", age, discovery)
	})
	mux.HandleFunc("OPTIONS "+pathJWKS, preflight)
	mux.HandleFunc("OPTIONS "+pathDiscovery, preflight)
	return mux
}

// document is a body that is served as it is.
type document struct {
	body []byte
	etag string
}

func newDocument(body []byte) document {
	sum := sha256.Sum256(body)
	return document{body, `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`}
}

// newDiscovery has what OpenID Connect Discovery requires, but for the endpoints of a flow that
// is not here. It names all algorithms there are: relying parties may keep it for long, and the
// policy's may change.
func newDiscovery(issuer, jwksURL string) document {
	body, _ := json.Marshal(map[string]any{ // strings always have JSON
		"issuer":                                issuer,
		"jwks_uri":                              cmp.Or(jwksURL, strings.TrimSuffix(issuer, "/")+pathJWKS),
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": jwt.Algorithms(),
	})
	return newDocument(body)
}

// serveDocument answers GET and HEAD, and If-None-Match with what it asks for. The JWKS is public: a
// page from anywhere may read it.
func serveDocument(w http.ResponseWriter, r *http.Request, contentType string, age time.Duration, d document) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("ETag", d.etag)
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(age.Seconds())))
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "ETag")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(d.body))
}

// unavailable answers that another server may be asked, or this one again: nothing of it is cached.
func unavailable(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Retry-After", "1")
	h.Set("Access-Control-Allow-Origin", "*")
	http.Error(w, "this server does not know which keys are good now", http.StatusServiceUnavailable)
}

// preflight answers a browser that is about to send If-None-Match.
func preflight(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD")
	h.Set("Access-Control-Allow-Headers", "If-None-Match")
	h.Set("Access-Control-Max-Age", "86400")
	w.WriteHeader(http.StatusNoContent)
}

package keyring

// JWKS and WellKnown: the endpoints for relying parties.

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

// JWKS returns the JSON Web Key Set (RFC 7517) with the public key of every key that is prepublished or whose
// tokens verify. It is the same on every server that has applied the same log, and needs no key material. It
// is nil when WellKnown answers 503.
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

// WellKnown serves two documents to anyone, on any server. /.well-known/jwks.json is the JWKS.
// /.well-known/openid-configuration is the discovery document (OpenID Connect Discovery 1.0), which names the
// issuer and the JWKS; without TokenPolicy.Issuer it is 404. If the issuer has a path, serve the handler
// below it, behind http.StripPrefix. With TokenPolicy.JWKSURL the discovery document names that URL, and the
// host must serve this handler's JWKS, or the result of JWKS, there.
//
// Answers may be cached for RotationPolicy.Lead, but never longer than five minutes. So a verifier that
// respects max-age knows each scheduled key before that signs. After Rotate without Publish it must fetch the
// JWKS again when it meets the unknown kid, and some verifiers do that only minutes later: see Rotate.
//
// A server that has not caught up with a leader since its start answers 503 for the JWKS, which must not be
// cached. A server that no longer hears from a leader shortens max-age by that time, so that no verifier uses
// a JWKS for too long. After an hour, or RotationPolicy.Lead if that is less, it answers 503 too: meanwhile a
// key may have been revoked, or begun to sign.
func (k *Keyring) WellKnown() http.Handler { return k.WellKnownFor(k.server.cfg.Tokens.Issuer) }

// WellKnownFor is WellKnown for one of the issuers of TokenPolicy: Issuer or one of AcceptIssuers. Its
// discovery document names that issuer, because a relying party rejects a document whose issuer is not the
// URL that it used. The JWKS is the same. A host with several issuers serves one handler for each, chosen by
// the host name or the path of the request. For any other issuer, and for an empty one, the discovery
// document is 404.
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
			http.Error(w, "TokenPolicy does not have this issuer", http.StatusNotFound)
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
	http.Error(w, "this server is not up to date and does not know which keys are valid now", http.StatusServiceUnavailable)
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

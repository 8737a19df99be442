package conformance_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
)

// party is a relying party of an issuer. It fetches the JWKS when it starts, and once more when it
// meets a kid that it does not know.
type party interface {
	// verify returns the sub of a token that is right at that time.
	verify(at time.Time, token string) (sub string, err error)
}

// goParty is golang-jwt, with MicahParks/jwkset to read the keys.
type goParty struct {
	issuer, audience string
	jwksURI          string
	algorithms       []string
	keys             map[string]any
}

func newGoParty(t *testing.T, issuer, audience string) *goParty {
	t.Helper()
	var found struct {
		Issuer     string
		JWKSURI    string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	b, err := get(issuer + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &found); err != nil || found.Issuer != issuer {
		t.Fatalf("discovery of %s: issuer %q, %v", issuer, found.Issuer, err)
	}
	p := &goParty{issuer: issuer, audience: audience, jwksURI: found.JWKSURI, algorithms: found.Algorithms}
	if err := p.fetch(); err != nil {
		t.Fatal(err)
	}
	return p
}

func get(url string) ([]byte, error) {
	r, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil, errors.New(r.Status)
	}
	return io.ReadAll(r.Body)
}

// fetch reads the JWKS. A key that can't be read is an error here: foreigners are not all lenient.
func (p *goParty) fetch() error {
	b, err := get(p.jwksURI)
	if err != nil {
		return err
	}
	var set jwkset.JWKSMarshal
	if err := json.Unmarshal(b, &set); err != nil {
		return err
	}
	p.keys = map[string]any{}
	for _, m := range set.Keys {
		key, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil {
			return err
		}
		p.keys[m.KID] = publicKey{key.Key(), m.ALG.String()}
	}
	return nil
}

// publicKey is a key and the one algorithm that the JWKS gives it.
type publicKey struct {
	key any
	alg string
}

func (p *goParty) verify(at time.Time, token string) (sub string, err error) {
	parsed, err := jwt.Parse(token, p.keyOf, jwt.WithIssuer(p.issuer), jwt.WithAudience(p.audience), jwt.WithExpirationRequired(),
		jwt.WithValidMethods(p.algorithms), jwt.WithTimeFunc(func() time.Time { return at }))
	if err != nil {
		return "", err
	}
	return parsed.Claims.GetSubject()
}

func (p *goParty) keyOf(token *jwt.Token) (any, error) {
	kid, _ := token.Header["kid"].(string)
	if p.keys[kid] == nil {
		if err := p.fetch(); err != nil {
			return nil, err
		}
	}
	key, ok := p.keys[kid].(publicKey)
	if !ok || key.alg != token.Method.Alg() {
		return nil, fmt.Errorf("no key %s for %s", kid, token.Method.Alg())
	}
	return key.key, nil
}

// jsParty is npm's jose and openid-client, in a process of Node.js.
type jsParty struct {
	ask     io.Writer
	answers *bufio.Scanner
}

func newJSParty(t *testing.T, issuer, audience string) *jsParty {
	t.Helper()
	if _, err := os.Stat("jose/node_modules"); err != nil {
		t.Fatal("jose/node_modules is missing: npm ci --prefix jose")
	}
	cmd := exec.Command("node", "verify.mjs", issuer, audience)
	cmd.Dir, cmd.Stderr = "jose", t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // it ends
		if err := cmd.Wait(); err != nil {
			t.Errorf("node: %v", err)
		}
	})
	return &jsParty{in, bufio.NewScanner(out)}
}

func (p *jsParty) verify(at time.Time, token string) (sub string, err error) {
	return p.verifyTyped(at, token)
}

// verifyTyped is verify of a token of a typ, if one is named.
func (p *jsParty) verifyTyped(at time.Time, token string, typ ...string) (sub string, err error) {
	if _, err := fmt.Fprintln(p.ask, at.Unix(), strings.Join(append([]string{token}, typ...), " ")); err != nil {
		return "", err
	}
	if !p.answers.Scan() {
		return "", fmt.Errorf("node has ended: %v", p.answers.Err())
	}
	verdict, text, _ := strings.Cut(p.answers.Text(), " ")
	if verdict != "ok" {
		return "", errors.New(text)
	}
	return text, nil
}

package docs_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/plan"
	"example.com/keyring/node"
)

func typedToken(ctx context.Context, n *node.Node, use func(token string)) error {
	token, err := n.SignTyped(ctx, "at+jwt", map[string]any{"sub": "prod/job/web", "aud": "consul.example"})
	if err != nil {
		return err
	}
	want := keyring.Expect{Audience: []string{"consul.example"}, Type: "at+jwt"}
	if err := n.Keyring().Verify(token, want); err != nil {
		return err
	}
	use(token)
	return nil
}

// TestTokensPageTellsKindsApart: a token of one kind is none of another, either way.
func TestTokensPageTellsKindsApart(t *testing.T) {
	n := startForPage(t, node.Config{})
	var token string
	if err := typedToken(t.Context(), n, func(signed string) { token = signed }); err != nil {
		t.Fatal(err)
	}
	plain, err := n.Sign(t.Context(), map[string]any{"aud": "consul.example"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		token, typ string
		ok         bool
	}{{token, "at+jwt", true}, {token, "", false}, {plain, "", true}, {plain, "at+jwt", false}} {
		err := n.Keyring().Verify(tt.token, keyring.Expect{Audience: []string{"consul.example"}, Type: tt.typ})
		if tt.ok && err != nil || !tt.ok && !errors.Is(err, keyring.ErrToken) {
			t.Errorf("expected as %q: %v", tt.typ, err)
		}
	}
}

// TestTokensPageSaysWhatZeroMeans, and what is refused, of a TokenPolicy: by the tokens of a server with the zero value.
func TestTokensPageSaysWhatZeroMeans(t *testing.T) {
	n, err := node.Start(t.Context(), node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	token, err := n.Sign(t.Context(), map[string]any{"aud": "a"})
	if err != nil {
		t.Fatal(err)
	}
	var header struct{ Alg string }
	var claims struct {
		Iss           *string
		Iat, Nbf, Exp int64
	}
	parts := strings.Split(token, ".")
	for i, into := range []any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if claims.Iss != nil {
		t.Errorf("it has the issuer %s", *claims.Iss)
	}
	const page = "docs/tokens.md"
	leeway := map[int64]string{60: "one minute"}[claims.Iat-claims.Nbf]
	checkFigures(t, []figure{
		{page, "Keys that exist keep theirs | `" + header.Alg + "` |"},
		{page, fmt.Sprintf("| `MaxTTL` | the longest life of a token | %d hours |", (claims.Exp-claims.Iat)/3600)},
		{page, "| `Leeway` | how far clocks may differ, at most a day | " + leeway + " |"},
		{page, fmt.Sprintf("`RotationPolicy.Lead`, and at most %.0f minutes.", plan.Settle.Minutes())},
		{page, map[time.Duration]string{time.Hour: "After an hour, or `Lead` if that is less, it answers 503"}[plan.Stale]},
		{page, fmt.Sprintf("is no compact JWS of at most %d KiB", jwt.MaxToken>>10)},
		{page, fmt.Sprintf("`large JWKS` if there are more than %d keys", constantOf(t, ".", "maxJWKS"))},
		{page, fmt.Sprintf("other issuers whose tokens verify, at most %d:", constantOf(t, ".", "maxAcceptIssuers"))},
	})
	source, err := os.ReadFile(filepath.Join(keyringtest.Root(t), "rotation.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, library := range []string{"jose", "openid-client", "keyfunc", "jwx"} { // the four of which the page says that they are there
		if !strings.Contains(string(source), library) {
			t.Errorf("the documentation of Rotate does not name %s", library)
		}
	}
	for what, tt := range map[string]struct {
		policy keyring.TokenPolicy
		ok     bool
	}{
		"RS256":                          {keyring.TokenPolicy{Algorithm: "RS256"}, true},
		"ES256":                          {keyring.TokenPolicy{Algorithm: "ES256"}, true},
		"EdDSA":                          {keyring.TokenPolicy{Algorithm: "EdDSA"}, true},
		"PS256":                          {keyring.TokenPolicy{Algorithm: "PS256"}, false},
		"a Leeway of a day":              {keyring.TokenPolicy{Leeway: 24 * time.Hour}, true},
		"a Leeway of more than a day":    {keyring.TokenPolicy{Leeway: 24*time.Hour + 1}, false},
		"an issuer that is no URL":       {keyring.TokenPolicy{Issuer: "prod"}, false},
		"an issuer with a query":         {keyring.TokenPolicy{Issuer: "https://keys.example.com?a"}, false},
		"tokens without iss beside some": {keyring.TokenPolicy{Issuer: "https://keys.example.com", AcceptIssuers: []string{""}}, true},
	} {
		if err := (keyring.Config{KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: tt.policy}).Check(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

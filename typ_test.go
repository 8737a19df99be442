package keyring_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// forMeAs is what a test expects of a token of some typ.
func forMeAs(typ string) keyring.Expect { return keyring.Expect{Audience: []string{"me"}, Type: typ} }

// TestTokensOfOneTypAreNoneOfAnother, on every server. The first token of a leader is one of a typ.
func TestTokensOfOneTypAreNoneOfAnother(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewSigning(t, 3, func(cfg *keyring.Config) { cfg.Tokens.Algorithm = alg })
			leader := keyringtest.Ready(t, c)
			keyringtest.AwaitKeys(t, c)
			for _, signed := range []struct{ typ, written string }{
				{"application/at+jwt", "at+jwt"}, {"", "JWT"}, {"JWT", "JWT"}, {"secevent+jwt", "secevent+jwt"},
			} {
				token, err := leader.Keyring.SignTyped(signed.typ, keyringtest.ClaimsForMe())
				if err != nil {
					t.Fatal(err)
				}
				want := `{"alg":"` + alg + `","kid":"` + leader.Keyring.Keys()[0].ID.String() + `","typ":"` + signed.written + `"}`
				if header := string(keyringtest.DecodedPart(t, token, 0)); header != want {
					t.Errorf("header %s, want %s", header, want)
				}
				for _, s := range c.Servers {
					for expected, is := range map[string]string{
						"": "JWT", "jwt": "JWT", "at+jwt": "at+jwt", "application/AT+JWT": "at+jwt", "application/secevent+jwt": "secevent+jwt", "x+jwt": "x+jwt",
					} {
						err := s.Keyring.Verify(token, forMeAs(expected))
						if is == signed.written && err != nil || is != signed.written && (!errors.Is(err, keyring.ErrToken) || !strings.Contains(err.Error(), "typ")) {
							t.Errorf("%s: a token of typ %q, where %q is expected: %v", s.ID, signed.written, expected, err)
						}
					}
				}
			}
		})
	}
}

// TestTypThatIsNoneIsAMistake of the caller's, and no fault of the token.
func TestTypThatIsNoneIsAMistake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 1, nil)
		leader := keyringtest.Ready(t, c)
		token := keyringtest.Sign(t, leader)
		for _, typ := range []string{"at jwt", "at+jwt;v=1", `"`, "a/b/c", strings.Repeat("a", 128)} {
			if token, err := leader.Keyring.SignTyped(typ, keyringtest.ClaimsForMe()); err == nil || token != "" || !strings.Contains(err.Error(), "typ") {
				t.Errorf("%q: %q, %v", typ, token, err)
			}
			if err := leader.Keyring.Verify(token, forMeAs(typ)); err == nil || errors.Is(err, keyring.ErrToken) || !strings.Contains(err.Error(), "Expect.Type") {
				t.Errorf("%q: %v", typ, err)
			}
		}
	})
}

package jwt_test

import (
	"errors"
	"strings"
	"testing"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
)

func TestTypIsAMediaType(t *testing.T) {
	long := strings.Repeat("a", 127)
	for typ, want := range map[string]string{
		"": "JWT", "JWT": "JWT", "jwt": "jwt", "at+jwt": "at+jwt", "application/at+jwt": "at+jwt", "APPLICATION/At+JWT": "At+JWT",
		"example/x": "example/x", "vnd.a-b_c^d!#$&.1": "vnd.a-b_c^d!#$&.1", "7": "7", long: long, "application/" + long[:115]: long[:115],
	} {
		if got, err := jwt.Type(typ); err != nil || got != want {
			t.Errorf("%s: %q, %v", typ, got, err)
		}
	}
	for _, typ := range []string{
		" ", "+jwt", "/jwt", "application/", "a/b/c", "application//jwt", "application/a/b", "a/+b", "a b", "at+jwt;v=1", "at+jwt\n", `a"b`, `a\b`, "a\x00", "é", "a\xff",
		"at+jwt,b", "(a)", long + "a", "application/" + long[:116], strings.Repeat("a", 1<<20),
	} {
		if got, err := jwt.Type(typ); err == nil || got != "" || len(err.Error()) > 200 {
			t.Errorf("%.200q: %.200q, %v", typ, got, err)
		}
	}
}

// typed are headers of a key, by their typ. A space in front makes a header that the keyring does not write.
func (p pair) typed(typ string) []string {
	h := `{"alg":"` + p.Algorithm + `","kid":"` + kid + `","typ":"` + typ + `"}`
	return []string{h, " " + h}
}

func TestTokenIsOpenedByItsTypAlone(t *testing.T) {
	for alg, p := range pairs(t) {
		k := keys{kid: p.key(t)}
		check := func(header, want string, taken bool) {
			t.Helper()
			got, key, err := jwt.Open(p.Token(header, payload), k, want)
			if (err == nil) != taken || taken && (string(got) != payload || key == nil) || !taken && (got != nil || key != nil) {
				t.Errorf("%s: %s, want %q: %q, %v", alg, header, want, got, err)
			}
			if !taken && !strings.Contains(err.Error(), "typ") {
				t.Errorf("%s: %s, want %q: %v", alg, header, want, err)
			}
		}
		for typ, is := range map[string]string{
			"JWT": "JWT", "jwt": "JWT", "application/JWT": "JWT", "Application/jwt": "JWT",
			"at+jwt": "at+jwt", "AT+JWT": "at+jwt", "application/at+jwt": "at+jwt", "APPLICATION/AT+jwt": "at+jwt",
			"example/at+jwt": "example/at+jwt", "ſk+jwt": "", "at+jw": "", "at+jwt ": "", "at_jwt": "", "at+jwt;v=1": "", "application/": "", "": "", "/": "",
			"application/application/jwt": "", `at\u002bjwt`: "", "JW\u212a": "",
		} {
			for _, header := range p.typed(typ) {
				check(header, "", is == "JWT")
				for _, want := range []string{"JWT", "at+jwt", "example/at+jwt", "sk+jwt", "JWK"} {
					check(header, want, is == want)
				}
			}
		}
		untyped := `{"alg":"` + alg + `","kid":"` + kid + `"}`
		check(untyped, "", true)
		check(untyped, "JWT", false)
		check(untyped, "at+jwt", false)
	}
}

// TestTypedTokensAreHeldToAllElse: what makes a token of typ JWT refused does so with another one.
func TestTypedTokensAreHeldToAllElse(t *testing.T) {
	for alg, p := range pairs(t) {
		q := pairs(t)[alg]
		for _, header := range p.typed("at+jwt") {
			good := p.Token(header, payload)
			parts := strings.Split(good, ".")
			for name, token := range map[string]string{
				"of another key":      q.Token(header, payload),
				"another payload":     parts[0] + "." + keyringtest.Base64(`{"sub":"y"}`) + "." + parts[2],
				"another header":      keyringtest.Base64(header+" ") + "." + parts[1] + "." + parts[2],
				"typ twice":           p.Token(header[:len(header)-1]+`,"typ":"at+jwt"}`, payload),
				"one member more":     p.Token(header[:len(header)-1]+`,"crit":[]}`, payload),
				"of another alg":      p.Token(strings.Replace(header, alg, "HS256", 1), payload),
				"typ is a list":       p.Token(strings.Replace(header, `"at+jwt"`, `["at+jwt"]`, 1), payload),
				"no signature":        parts[0] + "." + parts[1] + ".",
				"signature of zeroes": parts[0] + "." + parts[1] + "." + keyringtest.Base64(string(make([]byte, 64))),
			} {
				if got, key, err := jwt.Open(token, keys{kid: p.key(t)}, "at+jwt"); err == nil || got != nil || key != nil {
					t.Errorf("%s: %s: %q", alg, name, got)
				}
			}
			if _, _, err := jwt.Open(good, keys{}, "at+jwt"); !errors.Is(err, jwt.ErrUnknownKey) {
				t.Error(err)
			}
		}
	}
}

// TestSignedTypedTokens are what the standard library would have made, to the byte where the signature is a function of its
// input.
func TestSignedTypedTokens(t *testing.T) {
	for alg, p := range pairs(t) {
		s := p.signer(t)
		token, err := s.Sign("at+jwt", []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		if want := p.Token(p.typed("at+jwt")[0], payload); len(token) != len(want) || alg != "ES256" && token != want {
			t.Errorf("%s: %s, want %s", alg, token, want)
		}
		if got, _, err := jwt.Open(token, keys{kid: p.key(t)}, "at+jwt"); err != nil || string(got) != payload {
			t.Errorf("%s: %q, %v", alg, got, err)
		}
	}
}

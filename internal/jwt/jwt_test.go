package jwt_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
	"github.com/go-jose/go-jose/v3"
)

const payload = `{"sub":"x"}`

func TestTokensThatAreOpened(t *testing.T) {
	for alg, p := range pairs(t) {
		for name, header := range map[string]string{
			"as written":     p.written(),
			"another order":  `{"typ":"JWT","kid":"` + kid + `","alg":"` + alg + `"}`,
			"without typ":    `{"alg":"` + alg + `","kid":"` + kid + `"}`,
			"typ lower case": `{"alg":"` + alg + `","kid":"` + kid + `","typ":"jwt"}`,
			"white space":    " {\n\t\"alg\" : \"" + alg + "\", \"kid\" : \"" + kid + "\" }\r\n",
		} {
			got, key, err := jwt.Open(p.Token(header, payload), keys{kid: p.key(t)}, "")
			if err != nil || string(got) != payload || key == nil {
				t.Errorf("%s, %s: %q, %v", alg, name, got, err)
			}
		}
	}
}

// crafted are tokens that must not be opened though the forger has all that is public, and in
// some cases the private key.
func crafted(t testing.TB, p pair) map[string]string {
	ours, head := p.Token(p.written(), payload), p.written()
	parts := strings.Split(ours, ".")
	member := func(more string) string { return p.Token(head[:len(head)-1]+more+"}", payload) }
	mac := func(key []byte) string {
		input := keyringtest.Base64(`{"alg":"HS256","kid":"`+kid+`","typ":"JWT"}`) + "." + keyringtest.Base64(payload)
		m := hmac.New(sha256.New, key)
		m.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
	}
	der := p.Public(t)
	none := func(alg string) string {
		return keyringtest.Base64(`{"alg":"`+alg+`","kid":"`+kid+`"}`) + "." + keyringtest.Base64(payload) + "."
	}
	otherAlg := map[string]string{"RS256": "ES256", "ES256": "EdDSA", "EdDSA": "RS256"}[p.Algorithm]
	all := map[string]string{
		"nothing": "", "a dot": ".", "two dots": "..", "a million dots": strings.Repeat(".", 1e6), "three dots": ours + ".",
		"two parts": parts[0] + "." + parts[1], "four parts": ours + "." + parts[2], "five parts, as JWE": ours + "." + parts[1] + "." + parts[2],
		"no signature": parts[0] + "." + parts[1] + ".", "no header": "." + parts[1] + "." + parts[2], "no payload": parts[0] + ".." + parts[2],
		"alg none": none("none") + parts[2], "alg none, no signature": none("none"), "alg None": none("None") + "AA", "alg empty": none("") + parts[2],
		"HS256 with the DER for a key": mac(der), "HS256 with the PEM for a key": mac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		"HS256 with nothing for a key":       mac(nil),
		"another algorithm, ours underneath": p.Token(`{"alg":"`+otherAlg+`","kid":"`+kid+`"}`, payload),
		"RS512":                              p.Token(`{"alg":"RS512","kid":"`+kid+`"}`, payload),
		"alg in lower case":                  p.Token(`{"alg":"`+strings.ToLower(p.Algorithm)+`","kid":"`+kid+`"}`, payload),
		"jwk":                                member(`,"jwk":{"kty":"oct","k":"AA"}`), "jku": member(`,"jku":"https://evil.example/jwks.json"`),
		"x5u": member(`,"x5u":"https://evil.example"`), "x5c": member(`,"x5c":["AA"]`), "x5t": member(`,"x5t":"AA"`),
		"crit": member(`,"crit":["exp"],"exp":1`), "empty crit": member(`,"crit":[]`),
		"b64 false": member(`,"b64":false,"crit":["b64"]`), "b64 without crit": member(`,"b64":false`),
		"cty": member(`,"cty":"JWT"`), "zip": member(`,"zip":"DEF"`), "enc": member(`,"enc":"A128GCM"`), "iss in the header": member(`,"iss":"x"`),
		"alg twice": member(`,"alg":"` + p.Algorithm + `"`), "kid twice": member(`,"kid":"` + kid + `"`), "typ twice": member(`,"typ":"JWT"`),
		"Kid beside kid": member(`,"Kid":"` + kid + `"`), "alg twice, escaped": member(`,"\u0061lg":"none"`),
		"empty payload": p.Token(head, ""),
		"padded":        ours + "=", "padded twice": ours + "==", "padded payload": parts[0] + "." + parts[1] + "=." + parts[2],
		"line break": ours[:20] + "\n" + ours[20:], "line break in the signature": ours[:len(ours)-4] + "\r\n" + ours[len(ours)-4:],
		"carriage return":       ours[:len(ours)-4] + "\r" + ours[len(ours)-4:],
		"line break at the end": ours + "\n", "space before": " " + ours, "space after": ours + " ", "NUL after": ours + "\x00",
		"standard base64":       strings.NewReplacer("-", "+", "_", "/").Replace(ours) + "+",
		"longer by one":         ours + "A",
		"bits left over":        parts[0] + "." + parts[1] + "." + leftOver(parts[2]),
		"another payload":       parts[0] + "." + keyringtest.Base64(`{"sub":"y"}`) + "." + parts[2],
		"signature of zeros":    parts[0] + "." + parts[1] + "." + keyringtest.Base64(string(make([]byte, len(parts[2])*3/4))),
		"signature cut":         ours[:len(ours)-4],
		"JSON serialisation":    `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"JSON, many signatures": `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`,
		"detached":              parts[0] + ".." + parts[2],
		"Bearer":                "Bearer " + ours,
	}
	maps.Copy(all, badHeaders(p))
	return all
}

// badHeaders are tokens signed by p under headers that it does not write.
func badHeaders(p pair) map[string]string {
	head := p.written()
	return map[string]string{
		"ALG for alg":         p.Token(`{"ALG":"`+p.Algorithm+`","kid":"`+kid+`"}`, payload),
		"no alg":              p.Token(`{"kid":"`+kid+`"}`, payload),
		"no kid":              p.Token(`{"alg":"`+p.Algorithm+`"}`, payload),
		"empty kid":           p.Token(`{"alg":"`+p.Algorithm+`","kid":""}`, payload),
		"null kid":            p.Token(`{"alg":"`+p.Algorithm+`","kid":null}`, payload),
		"kid a number":        p.Token(`{"alg":"`+p.Algorithm+`","kid":7}`, payload),
		"kid a list":          p.Token(`{"alg":"`+p.Algorithm+`","kid":["`+kid+`"]}`, payload),
		"escaped kid":         p.Token(`{"alg":"`+p.Algorithm+`","kid":"\u0030`+kid[1:]+`"}`, payload),
		"kid in upper case":   p.Token(`{"alg":"`+p.Algorithm+`","kid":"`+strings.ToUpper(kid)+`"}`, payload),
		"kid of another":      p.Token(`{"alg":"`+p.Algorithm+`","kid":"`+another+`"}`, payload),
		"kid of 8 MiB":        p.Token(`{"alg":"`+p.Algorithm+`","kid":"`+strings.Repeat("0", 8<<20)+`"}`, payload),
		"kid of 8 KiB":        p.Token(`{"alg":"`+p.Algorithm+`","kid":"`+strings.Repeat("0", 8<<10)+`"}`, payload),
		"typ of another kind": p.Token(`{"alg":"`+p.Algorithm+`","kid":"`+kid+`","typ":"at+jwt"}`, payload),
		"typ null":            p.Token(`{"alg":"`+p.Algorithm+`","kid":"`+kid+`","typ":null}`, payload),
		"header a list":       p.Token(`["`+p.Algorithm+`","`+kid+`"]`, payload),
		"header a string":     p.Token(`"`+p.Algorithm+`"`, payload),
		"header with a tail":  p.Token(head+"{}", payload),
		"header with a BOM":   p.Token("\ufeff"+head, payload),
		"header not UTF-8":    p.Token(head[:len(head)-5]+"\xff"+head[len(head)-4:], payload),
	}
}

// leftOver sets a bit that decodes to nothing, if the length leaves one.
func leftOver(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	if len(s)%4 == 0 {
		return s + "AB" // one byte more, and bits
	}
	return s[:len(s)-1] + string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])|1])
}

func TestTokensThatAreRefused(t *testing.T) {
	for alg, p := range pairs(t) {
		for name, token := range crafted(t, p) {
			start := time.Now()
			if got, key, err := jwt.Open(token, keys{kid: p.key(t)}, ""); err == nil || got != nil || key != nil {
				t.Errorf("%s, %s: %q, %v", alg, name, got, err)
			}
			if took := time.Since(start); len(token) > jwt.MaxToken && took > 100*time.Millisecond {
				t.Errorf("%s, %s: %v", alg, name, took)
			}
		}
	}
}

// TestSizeIsAskedFirst: a token that is too long costs nothing, however it goes on.
func TestSizeIsAskedFirst(t *testing.T) {
	p := pairs(t)["EdDSA"]
	fits := strings.Repeat("x", (jwt.MaxToken-len(p.Token(p.written(), "")))*3/4-8)
	ours := p.Token(p.written(), fits)
	if len(ours) > jwt.MaxToken || len(ours) < jwt.MaxToken-16 {
		t.Fatalf("%d bytes", len(ours))
	}
	if _, _, err := jwt.Open(ours, keys{kid: p.key(t)}, ""); err != nil {
		t.Errorf("%d bytes: %v", len(ours), err)
	}
	for _, token := range []string{
		p.Token(p.written(), fits+strings.Repeat("x", 16)), strings.Repeat("A", 8<<20), strings.Repeat(".", 8<<20),
	} {
		allocated := testing.AllocsPerRun(10, func() {
			if _, _, err := jwt.Open(token, nil, ""); err == nil {
				t.Error("opened")
			}
		})
		if allocated > 0 {
			t.Errorf("%d bytes: %v allocations", len(token), allocated)
		}
	}
}

// TestEveryChangedByteIsRefused puts every byte there is at every place of a token.
func TestEveryChangedByteIsRefused(t *testing.T) {
	for alg, p := range pairs(t) {
		k := keys{kid: p.key(t)}
		tokens := []string{p.Token(p.written(), payload)}
		if alg == "EdDSA" { // the quickest, once more with a header that has to be parsed
			tokens = append(tokens, p.Token(`{"kid":"`+kid+`","alg":"`+alg+`"}`, payload))
		}
		for _, ours := range tokens {
			if _, _, err := jwt.Open(ours, k, ""); err != nil {
				t.Fatal(err)
			}
			changed := []byte(ours)
			for i := range changed {
				for c := range 256 {
					if byte(c) == ours[i] {
						continue
					}
					changed[i] = byte(c)
					if _, _, err := jwt.Open(string(changed), k, ""); err == nil {
						t.Errorf("%s: byte %d made %q is taken", alg, i, byte(c))
					}
				}
				changed[i] = ours[i]
			}
			for i := range len(ours) {
				if _, _, err := jwt.Open(ours[:i], k, ""); err == nil {
					t.Errorf("%s: cut to %d bytes it is taken", alg, i)
				}
			}
		}
	}
}

// TestAlgorithmIsTheKeys: a key of one kind under the kid of another.
func TestAlgorithmIsTheKeys(t *testing.T) {
	all := pairs(t)
	for alg, p := range all {
		for other, q := range all {
			_, _, err := jwt.Open(p.Token(p.written(), payload), keys{kid: q.key(t)}, "")
			if (err == nil) != (alg == other) {
				t.Errorf("a token of %s with the key of %s: %v", alg, other, err)
			}
		}
	}
}

// TestKeySignsWithOneAlgorithm: what another one makes with the same RSA key is right, and refused.
func TestKeySignsWithOneAlgorithm(t *testing.T) {
	p := pairs(t)["RS256"]
	options := (&jose.SignerOptions{}).WithHeader("kid", kid)
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256} {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: p.Private}, options)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign([]byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := jwt.Open(token, keys{kid: p.key(t)}, ""); (err == nil) != (alg == jose.RS256) {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

// TestRefusalsSayNoMoreThanIsPublic: whatever is wrong with a signature reads the same.
func TestRefusalsSayNoMoreThanIsPublic(t *testing.T) {
	for alg, p := range pairs(t) {
		parts := strings.Split(p.Token(p.written(), payload), ".")
		signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
		texts := map[string]bool{}
		for i := range signature {
			signature[i] ^= 1
			_, _, err := jwt.Open(parts[0]+"."+parts[1]+"."+keyringtest.Base64(string(signature)), keys{kid: p.key(t)}, "")
			texts[fmt.Sprint(err)] = true
			signature[i] ^= 1
		}
		for _, s := range []string{"\x00", string(signature[1:]), string(signature) + "\x00", "\x00" + string(signature)} {
			_, _, err := jwt.Open(parts[0]+"."+parts[1]+"."+keyringtest.Base64(s), keys{kid: p.key(t)}, "")
			texts[fmt.Sprint(err)] = true
		}
		if len(texts) != 1 {
			t.Errorf("%s: %v", alg, texts)
		}
	}
}

func TestUnknownKeyIsToldApart(t *testing.T) {
	p := pairs(t)["EdDSA"]
	_, _, err := jwt.Open(p.Token(p.written(), payload), keys{}, "")
	if !errors.Is(err, jwt.ErrUnknownKey) {
		t.Error(err)
	}
}

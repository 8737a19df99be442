package conformance_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
)

// oddities are claims of which some library may refuse one. Sign refuses it first, or all take it.
func oddities() []string {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	objects := func(n int) string { return strings.Repeat(`{"a":`, n) + "0" + strings.Repeat("}", n) }
	return []string{
		"1e400", "-1e400", "1e308", "1.7976931348623157e308", "1.7976931348623159e308", "1e-400", "-0", "0.1e1", "123456789012345678901234567890",
		strings.Repeat("9", 308), strings.Repeat("9", 310), "1" + strings.Repeat("0", 5000), "0." + strings.Repeat("3", 5000),
		`"\ud800"`, `"\udc00\ud800"`, `"\ud83d\ude00"`, `"\u0000"`, `"\u2028"`, "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xf4\x8f\xbf\xbf\"",
		`{"a":1,"a":2}`, `{"a":1,"A":2}`, `{"":1}`, `{"__proto__":{"x":1},"constructor":1}`, `{"toString":null}`,
		deep(62), deep(63), deep(64), deep(200), objects(62), objects(63), objects(64), "null", "[null,true,[]]", "{}",
	}
}

// odd is claims with an oddity as a claim of its own, inside another, or in place of a registered one.
func odd(r *rand.Rand) json.RawMessage {
	all := oddities()
	value := all[r.IntN(len(all))]
	date := func() string {
		return []string{fmt.Sprint(time.Now().Unix()), fmt.Sprint(float64(time.Now().UnixMilli())/1000, "e0"), fmt.Sprintf("%e", float64(time.Now().Unix()+600)),
			"0", "-1", "1e10", "1e300", "1e400", "253402300799", "253402300800", "99999999999999999999", `"1"`, "null", "1.5"}[r.IntN(14)]
	}
	claims := []string{`"aud":"` + audience + `"`, `"sub":"odd"`}
	switch r.IntN(5) {
	case 0:
		claims = append(claims, `"x":`+value)
	case 1:
		claims = append(claims, `"x":[{"y":`+value+`}]`)
	case 2:
		claims = append(claims, `"`+[]string{"exp", "nbf", "iat"}[r.IntN(3)]+`":`+date())
	case 3:
		claims = append(claims, `"`+[]string{"iss", "jti", "Sub", "AUD", "azp", "nonce"}[r.IntN(6)]+`":`+value)
	case 4:
		claims[0] = `"aud":[` + []string{`"` + audience + `"`, `"` + audience + `",` + value, value + `,"` + audience + `"`, ""}[r.IntN(4)] + `]`
	}
	return json.RawMessage("{" + strings.Join(claims, ",") + "}")
}

// TestWhatIsSignedIsTakenEverywhere: of claims of any kind Sign refuses those that another library refuses.
func TestWhatIsSignedIsTakenEverywhere(t *testing.T) {
	i := newIssuer(t, "EdDSA", "")
	parties := map[string]party{"golang-jwt": newGoParty(t, i.url, audience), "jose": newJSParty(t, i.url, audience)}
	r := rand.New(rand.NewPCG(1, 2))
	signed, refused := 0, 0
	for range 3000 {
		claims := odd(r)
		token, err := i.Keyring().Sign(claims)
		at := time.Now()
		if err != nil || i.Keyring().Verify(token, keyring.Expect{Audience: []string{audience}}) != nil {
			refused++ // or it is good later, or elsewhere
			continue
		}
		signed++
		for name, p := range parties {
			if sub, err := p.verify(at, token); err != nil || sub != "odd" {
				t.Fatalf("%s refuses %.200s: %q, %v", name, claims, sub, err)
			}
		}
	}
	if signed < 500 || refused < 500 {
		t.Errorf("%d signed and %d refused", signed, refused)
	}
}

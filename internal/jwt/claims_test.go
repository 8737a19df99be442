package jwt_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/jwt"
)

const issuer = "https://issuer.example"

var now = time.Unix(1_800_000_000, 500e6)

// in is a claim with a time so many seconds from now.
func in(name string, seconds int64) string {
	return fmt.Sprintf(`"%s":%d`, name, now.Unix()+seconds)
}

func check(payload string, change func(*jwt.Want)) error {
	c, err := jwt.ParseClaims([]byte(payload))
	if err != nil {
		return err
	}
	w := jwt.Want{Issuers: []string{issuer}, Audience: []string{"a", "b"}, Now: now, Leeway: time.Minute}
	if change != nil {
		change(&w)
	}
	return c.Check(w)
}

// base is what every good token has, without the braces.
const base = `"iss":"https://issuer.example","aud":"a"`

func TestClaimsThatAreTaken(t *testing.T) {
	subject := func(w *jwt.Want) { w.Subject = "x" }
	foreign := func(w *jwt.Want) { w.Foreign = true }
	for _, tt := range []struct {
		claims string
		change func(*jwt.Want)
	}{
		{base + `,` + in("exp", 1), nil},
		{base + `,` + in("exp", -59), nil},
		{base + `,` + in("exp", 10*365*24*3600), nil},
		{base + `,` + in("exp", 1) + `,` + in("nbf", 60) + `,` + in("iat", 60), nil},
		{base + `,` + in("exp", 1) + `,` + in("nbf", -1e6) + `,` + in("iat", -1e6) + `,"jti":"","sub":""`, nil},
		{base + `,"exp":1.8000000005e9`, nil},
		{base + `,"exp":253402300799`, nil},
		{`"iss":"https://issuer.example","aud":["c","b"],` + in("exp", 1), nil},
		{`"iss":"https:\/\/issuer.example","aud":["c" , "\u0061" ],` + in("exp", 1), nil},
		{base + `,"sub":"x",` + in("exp", 1), subject},
		{base + `,` + in("exp", 1) + `,"exp_":1,"EX":2,"expires":3,"Iss2":4,"nested":{"Exp":1}`, nil},
		{`"aud":"a",` + in("exp", 1), func(w *jwt.Want) { w.Issuers = nil }},
		{`"iss":"anybody","aud":"a",` + in("exp", 1), func(w *jwt.Want) { w.Issuers = nil }},
		{``, foreign}, {`"aud":"a"`, foreign}, {in("exp", 1), foreign}, {`"iss":"https://issuer.example"`, foreign},
	} {
		if err := check(`{`+tt.claims+`}`, tt.change); err != nil {
			t.Errorf("%s: %v", tt.claims, err)
		}
	}
}

func TestClaimsThatAreRefused(t *testing.T) {
	subject := func(w *jwt.Want) { w.Subject = "x" }
	foreign := func(w *jwt.Want) { w.Foreign = true }
	for _, tt := range []struct {
		claims, why string
		change      func(*jwt.Want)
	}{
		{base, "no expiry", nil},
		{base + `,` + in("exp", -60), "expired", nil},
		{base + `,` + in("exp", -60), "expired", func(w *jwt.Want) { w.Now = time.Unix(now.Unix(), 0) }},
		{base + `,` + in("exp", -1e9), "expired", nil},
		{base + `,"exp":0`, "expired", nil},
		{base + `,` + in("exp", 100) + `,` + in("nbf", 61), "not valid yet", nil},
		{base + `,` + in("exp", 100) + `,` + in("iat", 61), "not valid yet", nil},
		{`"aud":"a",` + in("exp", 1), "issuer", nil},
		{`"iss":"","aud":"a",` + in("exp", 1), "issuer", nil},
		{`"iss":"https://issuer.example/","aud":"a",` + in("exp", 1), "issuer", nil},
		{`"iss":"https://issuer.example",` + in("exp", 1), "audience", nil},
		{`"iss":"https://issuer.example","aud":"c",` + in("exp", 1), "audience", nil},
		{`"iss":"https://issuer.example","aud":"",` + in("exp", 1), "audience", nil},
		{`"iss":"https://issuer.example","aud":[],` + in("exp", 1), "audience", nil},
		{`"iss":"https://issuer.example","aud":["A","ab"],` + in("exp", 1), "audience", nil},
		{base + `,` + in("exp", 1), "audience", func(w *jwt.Want) { w.Audience = nil }},
		{base + `,` + in("exp", 1), "subject", subject},
		{base + `,"sub":"y",` + in("exp", 1), "subject", subject},
		{base + `,"sub":"X",` + in("exp", 1), "subject", subject},
		{base + `,"exp":"1800000001"`, "claims", nil}, {base + `,"exp":null`, "claims", nil}, {base + `,"exp":true`, "claims", nil},
		{base + `,"exp":-1`, "claims", nil}, {base + `,"exp":1e300`, "claims", nil}, {base + `,"exp":253402300800`, "claims", nil},
		{base + `,"exp":1e999`, "claims", nil}, {base + `,"exp":99999999999999999999`, "claims", nil}, {base + `,"exp":[1800000001]`, "claims", nil},
		{base + `,` + in("exp", 1) + `,"nbf":"0"`, "claims", nil}, {base + `,` + in("exp", 1) + `,"iat":{}`, "claims", nil},
		{base + `,` + in("exp", 1) + `,"sub":7`, "claims", nil}, {base + `,` + in("exp", 1) + `,"jti":7`, "claims", nil},
		{`"iss":["https://issuer.example"],"aud":"a",` + in("exp", 1), "claims", nil},
		{`"iss":"https://issuer.example","aud":7,` + in("exp", 1), "claims", nil},
		{`"iss":"https://issuer.example","aud":["a",7],` + in("exp", 1), "claims", nil},
		{`"iss":"https://issuer.example","aud":["a",null],` + in("exp", 1), "claims", nil},
		{`"iss":"https://issuer.example","aud":[["a"]],` + in("exp", 1), "claims", nil},
		{`"iss":"https://issuer.example","aud":{"a":1},` + in("exp", 1), "claims", nil},
		{base + `,` + in("exp", 1) + `,` + in("exp", 2), "claims", nil},
		{base + `,` + in("exp", -100) + `,` + strings.Replace(in("exp", 1), "exp", "Exp", 1), "claims", nil},
		{base + `,` + in("exp", 1) + `,"x":{"y":1,"y":2}`, "claims", nil},
		{base + `,` + in("exp", 1) + `,"EXP2":1,"Sub":"x"`, "claims", nil},
		{base + `,` + in("exp", 1) + `,"ſub":"x"`, "claims", nil}, {base + `,` + in("exp", 1) + `,"\u0049SS":"x"`, "claims", nil},
		{in("exp", -100), "expired", foreign}, {in("nbf", 61), "not valid yet", foreign},
		{`"iss":"other"`, "issuer", foreign}, {`"aud":"c"`, "audience", foreign}, {`"aud":[]`, "audience", foreign},
	} {
		if err := check(`{`+tt.claims+`}`, tt.change); err == nil || !strings.HasPrefix(err.Error(), tt.why) {
			t.Errorf("%s: %v, want %s", tt.claims, err, tt.why)
		}
	}
	for _, payload := range []string{``, `null`, `[]`, `foo`, `{}{}`} {
		if check(payload, nil) == nil {
			t.Errorf("%q was taken", payload)
		}
	}
}

func TestMergeTakesTheLaterClaim(t *testing.T) {
	type claims struct {
		Sub string   `json:"sub,omitempty"`
		Aud []string `json:"aud,omitempty"`
		Own string
	}
	for _, tt := range []struct {
		values []any
		want   string
	}{
		{nil, `{}`},
		{[]any{map[string]any{}}, `{}`},
		{[]any{claims{Sub: "x", Own: "<>"}}, `{"sub":"x","Own":"\u003c\u003e"}`},
		{[]any{json.RawMessage(` { "a" : 1 } `)}, `{"a":1}`},
		{[]any{claims{Sub: "x"}, map[string]any{"a": 1e20, "sub": "y"}}, `{"sub":"y","Own":"","a":100000000000000000000}`},
		{[]any{&claims{Own: "1"}, &claims{Aud: []string{"a"}, Own: "2"}, map[string]int{}}, `{"Own":"2","aud":["a"]}`},
		{[]any{json.RawMessage(`{"a":1}`), json.RawMessage(`{"\u0061":{"b":2}}`)}, `{"a":{"b":2}}`},
	} {
		if got, err := jwt.Merge(tt.values...); err != nil || string(got) != tt.want {
			t.Errorf("%v: %s, %v", tt.values, got, err)
		}
	}
	for _, values := range [][]any{
		{nil, nil}, {claims{}, 7}, {claims{}, "x"}, {[]int{1}, claims{}}, {func() {}}, {claims{}, make(chan int)}, {claims{}, json.RawMessage(`{"a":1,"a":2}`)},
	} {
		if got, err := jwt.Merge(values...); err == nil {
			t.Errorf("%v: %s", values, got)
		}
	}
}

func defaults() jwt.Defaults {
	return jwt.Defaults{Issuer: issuer, Issuers: []string{issuer}, ID: "ID1", Now: now, MaxTTL: time.Hour, Leeway: time.Minute}
}

func TestCompleteFillsInWhatIsMissing(t *testing.T) {
	for _, tt := range []struct{ object, want string }{
		{`{}`, `{"iss":"https://issuer.example","iat":1800000000,"nbf":1799999940,"exp":1800003600,"jti":"ID1"}`},
		{`{"sub":"x"}`, `{"sub":"x","iss":"https://issuer.example","iat":1800000000,"nbf":1799999940,"exp":1800003600,"jti":"ID1"}`},
		{`{"jti":"mine","exp":1800000001,"iat":1700000000}`, `{"jti":"mine","exp":1800000001,"iat":1700000000,"iss":"https://issuer.example","nbf":1799999940}`},
		{`{"iss":"https://issuer.example","nbf":1800003599}`, `{"iss":"https://issuer.example","nbf":1800003599,"iat":1800000000,"exp":1800003600,"jti":"ID1"}`},
		{`{"exp":1800003600,"iat":1800000060,"nbf":0,"jti":""}`, `{"exp":1800003600,"iat":1800000060,"nbf":0,"jti":"","iss":"https://issuer.example"}`},
	} {
		got, err := jwt.Complete([]byte(tt.object), defaults())
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %s, %v", tt.object, got, err)
		}
		var claims struct{ Exp int64 }
		if err := json.Unmarshal(got, &claims); err != nil {
			t.Error(err)
		}
		last := func(w *jwt.Want) { w.Foreign, w.Now = true, time.Unix(claims.Exp-1, 0) }
		if err := check(string(got), last); err != nil {
			t.Errorf("%s: %v", got, err)
		}
	}
	d := defaults()
	d.Issuer, d.Issuers, d.ID = "", nil, "quoted \" \\ é"
	got, err := jwt.Complete([]byte(`{"iss":"mine"}`), d)
	var c struct{ Iss, Jti string }
	if err != nil || json.Unmarshal(got, &c) != nil || c.Iss != "mine" || c.Jti != d.ID {
		t.Errorf("%s, %v", got, err)
	}
}

// TestCompleteRefusesWhatOthersRefuse, and says why.
func TestCompleteRefusesWhatOthersRefuse(t *testing.T) {
	for object, why := range map[string]string{
		`{"x":1e400}`:           "a number is beyond",
		`{"x":[{"y":-1E+309}]}`: "a number is beyond",
		`{"exp":1e400}`:         "a number is beyond",
		`{"x":"\ud800"}`:        "half a surrogate pair",
		`{"\udc00x":1}`:         "half a surrogate pair",
		"{\"x\":\"\xff\"}":      "UTF-8",
		`{"x":1,"x":2}`:         "twice",
		`{"x":{"y":1,"Y":2}}`:   "twice",
		`{"x":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`: "nested too deep",
		`{"iat":1e300}`:        "iat: not a number of seconds",
		`{"nbf":-1}`:           "nbf: not a number of seconds",
		`{"exp":253402300800}`: "exp: not a number of seconds",
	} {
		if got, err := jwt.Complete([]byte(object), defaults()); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.60s: %s, %v, want %q", object, got, err, why)
		}
	}
}

func TestCompleteRefusesWhatNobodyWouldTake(t *testing.T) {
	for _, object := range []string{
		`{"exp":1800003601}`, `{"exp":1800003600.9}`, `{"exp":253402300799}`, `{"exp":1800000000}`, `{"exp":0}`, `{"exp":null}`, `{"exp":"1800000001"}`,
		`{"nbf":1800003600}`, `{"exp":1800000100,"nbf":1800000100}`, `{"iat":1800000061}`, `{"iss":""}`, `{"iss":"https://issuer.example/"}`,
		`{"aud":7}`, `{"sub":null}`, `{"jti":1}`, `{"Exp":1800000001}`, `{"a":1,"A":2}`, `{"a":{"b":1,"B":2}}`, `[]`, `"x"`, `null`, ``,
	} {
		if got, err := jwt.Complete([]byte(object), defaults()); err == nil {
			t.Errorf("%s: %s", object, got)
		}
	}
}

// TestTokenIsOfOneOfTheIssuers: an empty one stands for a token without iss, and not for one whose iss is empty.
func TestTokenIsOfOneOfTheIssuers(t *testing.T) {
	const before, other = `"iss":"https://before.example"`, `"iss":"https://other.example"`
	now := `"iss":"` + issuer + `"`
	for _, tt := range []struct {
		issuers []string
		taken   string // by the names below; with no issuers all are
	}{
		{nil, ""}, {[]string{issuer}, "n"}, {[]string{issuer, "https://before.example"}, "nb"}, {[]string{"https://before.example", ""}, "b-"}, {[]string{""}, "-"},
	} {
		for name, claim := range map[string]string{"n": now, "b": before, "o": other, "e": `"iss":""`, "-": `"jti":"x"`} {
			want := tt.issuers == nil || strings.Contains(tt.taken, name)
			err := check(`{"aud":"a",`+in("exp", 1)+`,`+claim+`}`, func(w *jwt.Want) { w.Issuers = tt.issuers })
			if (err == nil) != want {
				t.Errorf("%q: %s: %v", tt.issuers, claim, err)
			}
			d := defaults()
			d.Issuers = tt.issuers
			got, err := jwt.Complete([]byte(`{`+claim+`}`), d)
			if given := name != "-"; (err == nil) != (want || !given) || err == nil && !given && !strings.Contains(string(got), now) {
				t.Errorf("%q: complete %s: %s, %v", tt.issuers, claim, got, err)
			}
		}
	}
}

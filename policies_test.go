package keyring

import (
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// TestEachFieldOfThePoliciesIsCompared between the servers, also those that are yet to come.
func TestEachFieldOfThePoliciesIsCompared(t *testing.T) {
	plain := Config{}.policies()
	set := func(name string, field func(*Config) reflect.Value) {
		var c Config
		switch f := field(&c); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"x"}))
		default:
			f.SetInt(int64(time.Hour))
		}
		changed := c.policies()
		if changed[name] == plain[name] || len(changed) != len(plain) {
			t.Errorf("%s: %q, without it %q", name, changed[name], plain[name])
		}
	}
	of := func(policy string) {
		one := reflect.ValueOf(Config{}).FieldByName(policy).Type()
		for i := range one.NumField() {
			set(policy+"."+one.Field(i).Name, func(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByName(policy).Field(i) })
		}
	}
	of("Rotation")
	of("Tokens")
	for _, name := range []string{"Every", "Keep"} {
		set("Backups."+name, func(c *Config) reflect.Value {
			return reflect.ValueOf(c).Elem().FieldByName("Backups").FieldByName(name)
		})
	}
	set("RekeyGrace", func(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByName("RekeyGrace") })
}

// TestIssuersAreComparedByWhatIsTaken: a change of the issuer by rolling restarts is no difference that matters where each
// server takes the tokens of the other, and one that takes less than another is one.
func TestIssuersAreComparedByWhatIsTaken(t *testing.T) {
	long := strings.Repeat("x", 499)
	for name, tt := range map[string]struct {
		ours, theirs TokenPolicy
		want         []string // - for a harmless one, and words
	}{
		"equal":                    {TokenPolicy{Issuer: "a"}, TokenPolicy{Issuer: "a"}, nil},
		"none":                     {TokenPolicy{}, TokenPolicy{}, nil},
		"in another order":         {TokenPolicy{Issuer: "a", AcceptIssuers: []string{"b", "c"}}, TokenPolicy{Issuer: "a", AcceptIssuers: []string{"c", "b", "c"}}, nil},
		"a list has the issuer":    {TokenPolicy{Issuer: "a", AcceptIssuers: []string{"a"}}, TokenPolicy{Issuer: "a"}, nil},
		"in the second step":       {TokenPolicy{Issuer: "a", AcceptIssuers: []string{"b"}}, TokenPolicy{Issuer: "b", AcceptIssuers: []string{"a"}}, []string{`-Tokens.Issuer is "b" on s2, and "a" on s1; each accepts`}},
		"in the first step":        {TokenPolicy{Issuer: "a"}, TokenPolicy{Issuer: "a", AcceptIssuers: []string{"b"}}, []string{`!s2 accepts tokens with the issuers ["b"], and s1 rejects`}},
		"in the third step":        {TokenPolicy{Issuer: "b", AcceptIssuers: []string{"a"}}, TokenPolicy{Issuer: "b"}, []string{`!s1 accepts tokens with the issuers ["a"], and s2 rejects`}},
		"two others":               {TokenPolicy{Issuer: "a", AcceptIssuers: []string{"b"}}, TokenPolicy{Issuer: "a", AcceptIssuers: []string{"c"}}, []string{`!s2 accepts tokens with the issuers ["c"], and s1`, `!s1 accepts tokens with the issuers ["b"], and s2`}},
		"two issuers":              {TokenPolicy{Issuer: "a"}, TokenPolicy{Issuer: "b"}, []string{`!Tokens.Issuer is "b" on s2, and "a" on s1`}},
		"one takes the other's":    {TokenPolicy{Issuer: "a", AcceptIssuers: []string{"b"}}, TokenPolicy{Issuer: "b"}, []string{`!Tokens.Issuer is "b" on s2, and "a" on s1`}},
		"tokens without iss":       {TokenPolicy{Issuer: "a", AcceptIssuers: []string{""}}, TokenPolicy{}, []string{`-Tokens.Issuer is "" on s2, and "a" on s1`}},
		"tokens without iss, none": {TokenPolicy{Issuer: "a"}, TokenPolicy{}, []string{`!Tokens.Issuer is "" on s2`}},
		"one of a long list":       {TokenPolicy{Issuer: "a", AcceptIssuers: []string{long + "a", long + "b"}}, TokenPolicy{Issuer: "a", AcceptIssuers: []string{long + "a", long + "c"}}, []string{"!s2 accepts", "!s1 accepts"}},
	} {
		all := differences("s1", "s2", Config{Tokens: tt.ours}.policies(), Config{Tokens: tt.theirs}.policies())
		ok := len(all) == len(tt.want)
		for i := range min(len(all), len(tt.want)) {
			ok = ok && all[i].harmless == strings.HasPrefix(tt.want[i], "-") && strings.Contains(all[i].text, tt.want[i][1:]) && len(all[i].text) < 1200
		}
		if !ok {
			t.Errorf("%s: %+v, want %q", name, all, tt.want)
		}
	}
}

// TestOlderBuildsAreComparedByTheirOneIssuer: they do not tell of others, and take none.
func TestOlderBuildsAreComparedByTheirOneIssuer(t *testing.T) {
	older := Config{Tokens: TokenPolicy{Issuer: "a"}}.policies()
	delete(older, policyAcceptIssuers)
	delete(older, "Tokens.JWKSURL")
	for ours, want := range map[string]int{"a": 0, "b": 1} {
		all := differences("s1", "s2", Config{Tokens: TokenPolicy{Issuer: ours, AcceptIssuers: []string{"a", "b"}}}.policies(), older)
		if len(all) != want || want > 0 && all[0].harmless {
			t.Errorf("%s: %+v", ours, all)
		}
	}
}

// TestLongestPoliciesFitTheirMessage: a policy that Open takes keeps no server from telling its state.
func TestLongestPoliciesFitTheirMessage(t *testing.T) {
	c := Config{Tokens: TokenPolicy{
		Issuer:        "https://a.example/" + strings.Repeat("é", 1000),
		AcceptIssuers: append(strings.Split(strings.Repeat("http://a/&,", 15)[:164], ","), "https://a.example/"+strings.Repeat("&", 1332)),
		JWKSURL:       "https://a/?" + strings.Repeat("&", maxIssuerText-11),
	}}
	var w wrongs
	if c.Tokens.fill(&w); len(w) > 0 || len(c.Tokens.AcceptIssuers) != maxAcceptIssuers || len(strings.Join(c.Tokens.AcceptIssuers, "")) != maxIssuerText {
		t.Fatalf("%v: %d issuers, %d bytes", w, len(c.Tokens.AcceptIssuers), len(strings.Join(c.Tokens.AcceptIssuers, "")))
	}
	b, err := peer.Response{State: &peer.StateAnswer{Time: time.Now().UTC(), Policies: c.policies()}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	a, err := peer.DecodeAnswer[peer.StateAnswer](b)
	if err != nil || !maps.Equal(a.Policies, c.policies()) {
		t.Errorf("%+v, %v", a, err)
	}
}

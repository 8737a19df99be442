package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"example.com/keyring/internal/strictjson"
)

// maxDepth is how deep claims may be nested.
const maxDepth = 64

// Why a token with a valid signature is refused.
var (
	errClaims    = errors.New("claims")
	errMissing   = errors.New("no expiry")
	errExpired   = errors.New("expired")
	errTooSoon   = errors.New("not valid yet")
	errIssuer    = errors.New("issuer")
	errAudience  = errors.New("audience")
	errSubject   = errors.New("subject")
	errSpelling  = errors.New("a registered name in another case")
	errDate      = errors.New("not a number of seconds in the years 1970 to 9999")
	errNoStrings = errors.New("not a string, or an array of strings")
)

// Claims are the registered claims of a token. Missing ones are zero.
type Claims struct {
	issuer, subject              []byte
	audience                     [][]byte
	expires, notBefore, issuedAt time.Time
	given                        registered
}

// registered is a set of registered names.
type registered uint8

const (
	iss registered = 1 << iota
	sub
	aud
	exp
	nbf
	iat
	jti
)

var registeredNames = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"}

// ParseClaims reads the payload of a token.
func ParseClaims(payload []byte) (*Claims, error) {
	c := &Claims{}
	if err := strictjson.Object(payload, maxDepth, c.set); err != nil {
		return nil, fmt.Errorf("%w: %w", errClaims, err)
	}
	return c, nil
}

// set takes in one claim.
func (c *Claims) set(name, value []byte) (err error) {
	var which registered
	switch string(name) {
	case "iss":
		which = iss
		c.issuer, err = text(value)
	case "sub":
		which = sub
		c.subject, err = text(value)
	case "jti":
		which = jti
		_, err = text(value)
	case "aud":
		which = aud
		c.audience, err = texts(value)
	case "exp":
		which = exp
		c.expires, err = date(value)
	case "nbf":
		which = nbf
		c.notBefore, err = date(value)
	case "iat":
		which = iat
		c.issuedAt, err = date(value)
	default:
		if misspelt(name) {
			return errSpelling
		}
	}
	c.given |= which
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// misspelt reports whether encoding/json would take the name for a registered one.
func misspelt(name []byte) bool {
	if len(name) < 3 || len(name) > 3*len("ſ") {
		return false
	}
	return slices.ContainsFunc(registeredNames, func(r string) bool { return bytes.EqualFold(name, []byte(r)) })
}

func text(value []byte) ([]byte, error) {
	if value[0] != '"' {
		return nil, errNoStrings
	}
	return strictjson.Unescape(value[1 : len(value)-1]), nil
}

// texts reads an audience: a string or an array of strings, in valid JSON.
func texts(value []byte) (all [][]byte, err error) {
	if value[0] == '"' {
		one, err := text(value)
		return [][]byte{one}, err
	}
	s := strictjson.Scan(value)
	if s.Peek() != '[' {
		return nil, errNoStrings
	}
	for s.Next('[', ']') {
		if s.Peek() != '"' {
			return nil, errNoStrings
		}
		all = append(all, strictjson.Unescape(s.String()))
	}
	return all, nil
}

const lastSecond = 253402300799 // of the year 9999

// date reads a NumericDate.
func date(value []byte) (time.Time, error) {
	if n, err := strconv.ParseInt(string(value), 10, 64); err == nil && n >= 0 && n <= lastSecond {
		return time.Unix(n, 0), nil
	}
	f, err := strconv.ParseFloat(string(value), 64)
	if err != nil || !(f >= 0 && f <= lastSecond) {
		return time.Time{}, errDate
	}
	seconds, part := math.Modf(f)
	return time.Unix(int64(seconds), int64(part*1e9)), nil
}

// Want is what Check requires of a token.
type Want struct {
	Issuers  []string // one of them; empty accepts any, and an empty one a token without iss
	Audience []string // one of them is enough
	Subject  string   // empty accepts any
	Foreign  bool     // expiry, issuer and audience may be missing; if they are present they have to be right
	Now      time.Time
	Leeway   time.Duration
}

// Check says what is wrong with the claims, or nil.
func (c *Claims) Check(w Want) error {
	switch {
	case c.given&exp == 0 && !w.Foreign:
		return errMissing
	case c.given&exp != 0 && !w.Now.Before(c.expires.Add(w.Leeway)):
		return errExpired
	case w.Now.Add(w.Leeway).Before(c.notBefore), w.Now.Add(w.Leeway).Before(c.issuedAt):
		return errTooSoon
	case len(w.Issuers) > 0 && !c.isOf(w.Issuers) && !(w.Foreign && c.given&iss == 0):
		return errIssuer
	case !slices.ContainsFunc(w.Audience, c.isFor) && !(w.Foreign && c.given&aud == 0):
		return errAudience
	case w.Subject != "" && string(c.subject) != w.Subject:
		return errSubject
	}
	return nil
}

// isOf reports whether the token is of one of the issuers. An empty one stands for a token without iss.
func (c *Claims) isOf(issuers []string) bool {
	if c.given&iss != 0 && len(c.issuer) == 0 {
		return false
	}
	return slices.ContainsFunc(issuers, func(i string) bool { return i == string(c.issuer) })
}

func (c *Claims) isFor(audience string) bool {
	return slices.ContainsFunc(c.audience, func(a []byte) bool { return string(a) == audience })
}

// Merge returns one JSON object with the members of all values, each of which encoding/json has to encode as an object.
// If two values have the same member, the later one wins.
func Merge(values ...any) ([]byte, error) {
	if len(values) == 1 {
		return json.Marshal(values[0])
	}
	var order []string
	merged := map[string][]byte{}
	for i, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		err = strictjson.Object(b, maxDepth, func(name, value []byte) error {
			if _, again := merged[string(name)]; !again {
				order = append(order, string(name))
			}
			merged[string(name)] = value
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("claims %d: %w", i, err)
		}
	}
	object := []byte{'{'}
	for i, name := range order {
		if i > 0 {
			object = append(object, ',')
		}
		quoted, err := json.Marshal(name)
		if err != nil {
			return nil, err
		}
		object = append(append(append(object, quoted...), ':'), merged[name]...)
	}
	return append(object, '}'), nil
}

// Defaults are the claims that a token gets where its own are missing, and the limits of its own.
type Defaults struct {
	Issuer  string   // empty: none
	Issuers []string // an iss must be one of them; empty: any
	ID      string
	Now     time.Time
	MaxTTL  time.Duration
	Leeway  time.Duration // of the verifiers
}

// Complete returns a JSON object of claims in which missing iss, iat, nbf, exp and jti are filled in. The nbf is the
// leeway ago, for verifiers whose clocks are behind and that allow no leeway. It is an error if no verifier would accept
// the token, now or when it becomes valid, or if the token would outlive MaxTTL. The caller has to name the audience.
func Complete(object []byte, d Defaults) ([]byte, error) {
	c, err := ParseClaims(object)
	if err != nil {
		return nil, err
	}
	latest := d.Now.Add(d.MaxTTL)
	if c.given&exp == 0 {
		c.expires = time.Unix(latest.Unix(), 0)
	}
	switch {
	case len(d.Issuers) > 0 && c.given&iss != 0 && !c.isOf(d.Issuers):
		return nil, fmt.Errorf("iss is none of %q", d.Issuers)
	case c.expires.After(latest):
		return nil, fmt.Errorf("exp is more than %v from now", d.MaxTTL)
	case !c.expires.After(d.Now), !c.expires.After(c.notBefore):
		return nil, errors.New("exp is not after now and nbf")
	case c.issuedAt.After(d.Now.Add(d.Leeway)):
		return nil, errors.New("iat is in the future")
	}
	out := append(make([]byte, 0, len(object)+len(d.Issuer)+128), bytes.TrimSpace(object)...)
	out = out[:len(out)-1] // the brace
	put := func(which registered, key string) bool {
		if c.given&which != 0 {
			return false
		}
		if out[len(out)-1] != '{' {
			out = append(out, ',')
		}
		out = append(out, key...)
		return true
	}
	if d.Issuer != "" && put(iss, `"iss":`) {
		out = appendQuoted(out, d.Issuer)
	}
	if put(iat, `"iat":`) {
		out = strconv.AppendInt(out, d.Now.Unix(), 10)
	}
	if put(nbf, `"nbf":`) {
		out = strconv.AppendInt(out, max(0, d.Now.Add(-d.Leeway).Unix()), 10)
	}
	if put(exp, `"exp":`) {
		out = strconv.AppendInt(out, c.expires.Unix(), 10)
	}
	if put(jti, `"jti":`) {
		out = appendQuoted(out, d.ID)
	}
	return append(out, '}'), nil
}

// appendQuoted appends the JSON of a string.
func appendQuoted(dst []byte, s string) []byte {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			b, _ := json.Marshal(s) // a string always has one
			return append(dst, b...)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}

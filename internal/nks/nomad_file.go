package nks

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"example.com/keyring/internal/strictjson"
)

// nomadForm is what Nomad's versions differ in: the members of a file, where the key lies, and
// how it is put down there.
type nomadForm struct {
	members   []string
	root, rsa string
	wrapped   func(json []byte) ([]byte, error)
	provider  string // if the file names none
}

// The members are complete, like those of a blob: a reader that passed over unknown ones would
// make another key of a file in which the name of the RSA key is damaged.
var (
	nomadBare = nomadForm{ // before 1.8.3
		[]string{"Meta", "DEK", "RSAKey", "KEK"},
		"DEK", "RSAKey", jsonBytes, nomadAEAD,
	}
	nomadProvided = nomadForm{
		[]string{"Meta", "Provider", "ProviderID", "WrappedDEK", "WrappedRSAKey", "KEK"},
		"WrappedDEK", "WrappedRSAKey", jsonBlob, "",
	}
	nomadBlob = []string{"ciphertext", "iv", "hmac", "wrapped", "plaintext", "key_info", "value_path", "client_data"}
)

// IsNomad reports whether b looks like a key file of Nomad's, whole or damaged: a JSON object
// with a member Meta, which our own files don't have. They rarely have the name anywhere, which is quicker to see
// than the members are: every start asks of every file.
func IsNomad(b []byte) bool { return bytes.Contains(b, []byte(`"Meta"`)) && hasMember(b, "Meta") }

// DecodeNomad reads a key file of Nomad's, 1.4 or later. It keeps no part of b, and allocates
// no more than a small multiple of len(b).
func DecodeNomad(b []byte) (*Nomad, error) {
	if len(b) > MaxFile {
		return nil, malformedNomad(fmt.Sprintf("%d bytes are more than %d", len(b), MaxFile))
	}
	if !strictjson.Valid(b, maxNesting) {
		return nil, malformedNomad("not JSON, or nested too deep")
	}
	form := nomadBare
	if hasMember(b, nomadProvided.root) {
		form = nomadProvided
	}
	top, others, err := object(b, form.members)
	if err != nil {
		return nil, err
	}
	if others {
		return nil, malformedNomad("a member that no known version writes")
	}
	n, err := nomadMeta(top["Meta"])
	if err != nil {
		return nil, err
	}
	// Provider is left alone: its kind in some versions, its name in others.
	n.Provider = cmp.Or(jsonString(top["ProviderID"]), form.provider)
	kek, kekErr := jsonBytes(top["KEK"])
	root, rootErr := form.wrapped(top[form.root])
	rsa, rsaErr := form.wrapped(top[form.rsa])
	if err := cmp.Or(kekErr, rootErr, rsaErr); err != nil {
		return nil, err
	}
	if err := n.take(nomadWrapped{kek, root, rsa}); err != nil {
		return nil, err
	}
	return n, nil
}

// nomadMeta reads what does not matter for opening. State and indexes in a file are out of date,
// and versions add members.
func nomadMeta(b []byte) (*Nomad, error) {
	meta, _, err := object(b, []string{"KeyID", "Algorithm", "CreateTime"})
	if err != nil {
		return nil, err
	}
	id, ok := parseID(jsonString(meta["KeyID"]))
	if !ok {
		return nil, malformedNomad("KeyID is not a key ID")
	}
	if jsonString(meta["Algorithm"]) != nomadAlgorithm {
		return nil, malformedNomad("Algorithm is not " + nomadAlgorithm)
	}
	var created int64
	if at := meta["CreateTime"]; at != nil && json.Unmarshal(at, &created) != nil {
		return nil, malformedNomad("CreateTime is not in nanoseconds")
	}
	return &Nomad{ID: id, Created: time.Unix(0, created).UTC()}, nil
}

// take keeps w if it is what the provider writes, and needs no external KMS.
func (n *Nomad) take(w nomadWrapped) error {
	if !validProvider(n.Provider) {
		return malformedNomad("ProviderID")
	}
	kind, _, _ := strings.Cut(n.Provider, ".")
	if kind != nomadAEAD {
		if len(w.kek) != 0 || len(w.root) == 0 {
			return malformedNomad("not what an external KMS wraps")
		}
		return nil
	}
	switch {
	case len(w.kek) != nomadKEK:
		return malformedNomad("KEK")
	case len(w.root) != nomadRoot:
		return malformedNomad("root key")
	case len(w.rsa) > maxNomadRSA:
		return malformedNomad("RSA key")
	}
	n.reveal = func() *nomadWrapped { return &w }
	return nil
}

// jsonBlob returns the ciphertext of what a provider has wrapped. There is none in {}, which
// stands for a key that is not there.
func jsonBlob(b []byte) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	parts, others, err := object(b, nomadBlob)
	if err != nil {
		return nil, err
	}
	ciphertext, err := jsonBytes(parts["ciphertext"])
	if err != nil {
		return nil, err
	}
	if others || len(parts) > 0 && len(ciphertext) == 0 {
		return nil, malformedNomad("what is wrapped has no ciphertext, or more than is known")
	}
	return ciphertext, nil
}

// jsonBytes decodes a string of base64. An absent one is empty.
func jsonBytes(b []byte) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	if b[0] != '"' {
		return nil, malformedNomad("no string where one belongs")
	}
	b = b[1 : len(b)-1]
	out := make([]byte, 0, base64.StdEncoding.DecodedLen(len(b)))
	out, err := base64.StdEncoding.Strict().AppendDecode(out, b)
	if err != nil {
		return nil, malformedNomad("not base64")
	}
	return out, nil
}

// jsonString is empty for what is absent, for what is no string, and for one that is longer, every
// byte escaped, than any that is asked for.
func jsonString(b []byte) (s string) {
	if b == nil || len(b) > len(`""`)+maxProvider*len(`\u0000`) || json.Unmarshal(b, &s) != nil {
		return ""
	}
	return s
}

// malformedNomad says what is wrong with a file in words of ours, and none of the file's.
func malformedNomad(what string) error { return fmt.Errorf("%w: Nomad's file: %s", ErrFormat, what) }

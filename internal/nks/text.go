package nks

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The text of a file, around its values. Writer and reader share it.
const (
	atVersion    = "{\n  \"Version\": "
	atID         = ",\n  \"ID\": "
	atAlgorithm  = ",\n  \"Algorithm\": "
	atCheck      = ",\n  \"Check\": "
	atCreated    = ",\n  \"Created\": "
	atWrapped    = ",\n  \"Wrapped\": [\n"
	atKEK        = "    {\n      \"KEK\": "
	atKEKVersion = ",\n      \"Version\": "
	atCiphertext = ",\n      \"Ciphertext\": "
	atEntryEnd   = "\n    }"
	atNextEntry  = ",\n"
	atEntriesEnd = "\n  ]"
	atMAC        = ",\n  \"MAC\": "
	atSum        = ",\n  \"Sum\": "
	atEnd        = "\n}\n"
)

var (
	quoter   = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	unquoter = strings.NewReplacer(`\\`, `\`, `\"`, `"`)

	canonical = base64.StdEncoding.Strict() // but for newlines, which it passes over
)

// appendText appends the file with this MAC, if its version has one, and with an empty Sum.
func (f *File) appendText(b, mac []byte) []byte {
	b = append(b, atVersion...)
	b = strconv.AppendInt(b, int64(f.version()), 10)
	b = appendString(b, atID, formatID(f.ID))
	b = appendString(b, atAlgorithm, f.Algorithm)
	b = appendBase64(b, atCheck, f.Check[:])
	b = appendString(b, atCreated, f.Created.UTC().Format(timeLayout))
	b = append(b, atWrapped...)
	for i, w := range f.Wrapped {
		if i > 0 {
			b = append(b, atNextEntry...)
		}
		b = appendString(b, atKEK, quoter.Replace(w.KEK))
		if w.Version != "" {
			b = appendString(b, atKEKVersion, quoter.Replace(w.Version))
		}
		b = appendBase64(b, atCiphertext, w.Ciphertext)
		b = append(b, atEntryEnd...)
	}
	b = append(b, atEntriesEnd...)
	if f.version() > 1 {
		b = appendBase64(b, atMAC, mac)
	}
	b = appendString(b, atSum, "")
	return append(b, atEnd...)
}

func appendString(b []byte, at, s string) []byte {
	b = append(b, at...)
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendBase64(b []byte, at string, v []byte) []byte {
	b = append(b, at...)
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}

// fileVersion comes before everything else: of a later version, nothing but the place of its number is known.
func fileVersion(b []byte) (int, error) {
	rest, ok := bytes.CutPrefix(b, []byte(atVersion))
	version, _, comma := bytes.Cut(rest, []byte(","))
	if !ok || !comma {
		return 0, fmt.Errorf("%w: file: not a key file", ErrFormat)
	}
	n, err := strconv.ParseUint(string(version[:min(len(version), 10)]), 10, 32)
	switch {
	case err != nil || n == 0 || len(version) > 9 || strconv.FormatUint(n, 10) != string(version):
		return 0, fmt.Errorf("%w: file: version %.16q, this build knows 1 to %d", ErrFormat, version, FileVersion)
	case n > FileVersion:
		return 0, fmt.Errorf("%w: file: version %s, %w", ErrFormat, version, ErrVersion)
	}
	return int(n), nil
}

// parseText reads what appendText writes and a Sum, whose digits checkSum checks. Each value
// is held to its one spelling where it is read, and to what it may be by validate.
func parseText(b []byte, version int) (*File, error) {
	r := &reader{size: len(b), rest: b, version: version}
	f := &File{Version: version}
	r.literal(atVersion + strconv.Itoa(version))
	r.id(&f.ID, atID)
	f.Algorithm = string(r.quoted(atAlgorithm))
	r.hash(&f.Check, atCheck)
	r.time(&f.Created, atCreated)
	r.literal(atWrapped)
	f.Wrapped = r.wrapped()
	r.literal(atEntriesEnd)
	if version > 1 {
		r.hash(&f.MAC, atMAC)
	}
	sum := r.quoted(atSum)
	r.literal(atEnd)
	if len(sum)+len(sumEnd) != sumSize || len(r.rest) > 0 {
		r.fail("the Sum is not at the end")
	}
	return f, r.err
}

// reader consumes a file from the front. After the first error it reads nothing
// more, and err stays.
type reader struct {
	size    int // of all of the file
	version int
	rest    []byte
	err     error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: file: before byte %d: %s", ErrFormat, r.size-len(r.rest), what)
		r.rest = nil
	}
}

// skip consumes s if it comes next.
func (r *reader) skip(s string) bool {
	if len(r.rest) < len(s) || string(r.rest[:len(s)]) != s {
		return false
	}
	r.rest = r.rest[len(s):]
	return true
}

func (r *reader) literal(s string) {
	if !r.skip(s) {
		r.fail(fmt.Sprintf("no %q", s))
	}
}

// quoted consumes at and a string, and returns the string as it is spelled.
func (r *reader) quoted(at string) []byte {
	r.literal(at)
	r.literal(`"`)
	for from := 0; ; {
		i := bytes.IndexByte(r.rest[from:], '"')
		if i < 0 {
			break
		}
		end := from + i
		escapes := 0
		for escapes < i && r.rest[end-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			s := r.rest[:end]
			r.rest = r.rest[end+1:]
			return s
		}
		from = end + 1
	}
	r.fail("a string without an end")
	return nil
}

func (r *reader) base64(at string) []byte {
	s := r.quoted(at)
	b, err := canonical.AppendDecode(make([]byte, 0, canonical.DecodedLen(len(s))), s)
	if err != nil || canonical.EncodedLen(len(b)) != len(s) {
		r.fail("not base64, or not its one spelling")
	}
	return b
}

func (r *reader) id(to *ID, at string) {
	id, ok := parseID(string(r.quoted(at)))
	if !ok {
		r.fail("not a key ID")
	}
	*to = id
}

func (r *reader) hash(to *[32]byte, at string) {
	if b := r.base64(at); len(b) == len(to) {
		copy(to[:], b)
		return
	}
	r.fail("not a check value or a MAC")
}

func (r *reader) time(to *time.Time, at string) {
	s := string(r.quoted(at))
	t, err := time.Parse(timeLayout, s)
	if err != nil || t.Format(timeLayout) != s { // it takes a comma for the point
		r.fail("not a time, or not its one spelling")
	}
	*to = t
}

func (r *reader) name(at string) string {
	s := string(r.quoted(at))
	name := unquoter.Replace(s)
	if quoter.Replace(name) != s {
		r.fail("not the one spelling of a name")
	}
	return name
}

func (r *reader) wrapped() []Wrapped {
	var ws []Wrapped
	for {
		if len(ws) == maxWrapped { // here too, or a file of tiny entries costs many times its size
			r.fail("more entries than a file may have")
			return nil
		}
		w := Wrapped{KEK: r.name(atKEK)}
		if r.version > 1 && bytes.HasPrefix(r.rest, []byte(atKEKVersion)) {
			if w.Version = r.name(atKEKVersion); w.Version == "" {
				r.fail("an empty version of a KEK")
			}
		}
		w.Ciphertext = r.base64(atCiphertext)
		ws = append(ws, w)
		r.literal(atEntryEnd)
		if !r.skip(atNextEntry) {
			return ws
		}
	}
}

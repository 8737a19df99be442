package admin

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
)

// Program names the host's commands and files. The page and the commands show them with a problem, for
// copying into a shell: so quote what has spaces. In Start, StartWithOldKEKs and the files, $SERVER stands
// for the ID of a server. A command that needs an empty field is not shown.
type Program struct {
	// Name is how Command is called: the host's program, and all that comes before keys, servers, backup and
	// so on, such as "kvd keyring". Empty means the name of the running program.
	Name string
	// Server is the URL of the Handler that Command asks without -server. Empty means that -server is required.
	Server string

	// Start is the command that starts a server: "kvd serve $SERVER". $EVERY in it stands for the flag -every
	// with the rotation period where a problem needs that, and otherwise for nothing.
	Start string
	// StartWithOldKEKs is the command that starts a server once with OldKEKs that open the key files when
	// their KEK is lost.
	StartWithOldKEKs string
	// Recover is the command that makes a server the only member when most are gone for good: see
	// node.Recover and keyring.RecoverKeys.
	Recover string

	Keystore        string // a server's directory of key files
	Raft            string // a server's directory of raft's log
	KEK             string // a server's file for keyring.FileKEK
	Certificate, CA string // PEM files: a server's, and that of the CA
}

func (p Program) withDefaults() Program {
	if p.Name == "" && len(os.Args) > 0 {
		p.Name = filepath.Base(os.Args[0])
	}
	return p
}

// noLeader is what to do where there is no leader, as the end of an error.
func (p Program) noLeader() string {
	last := "make it the only member"
	if p.Recover != "" {
		last = "call " + p.Recover
	}
	return ". First check with " + p.Name + " keys status, asked at the other servers, whether they have a leader: then never recover this one. " +
		"Otherwise start the servers that are down. Only if most of them are gone for good, stop the one that is left and " + last
}

// asking is the program with the URL of a server, for the commands that ask one.
func (p Program) asking(url string) string {
	if url == "" || url == p.Server {
		return p.Name
	}
	return p.Name + " -server " + quote(url)
}

// expand puts the fields into a template, and reports whether it needs one that is empty. What is left in it
// are variables of the problem.
func (p Program) expand(template string) (string, bool) {
	if p.KEK == "" { // a key management service, say
		template = strings.ReplaceAll(template, "-kek $KEK ", "")
	}
	complete := true
	for name, command := range map[string]string{"$START": p.Start, "$OLDKEKS": p.StartWithOldKEKs, "$RECOVER": p.Recover} {
		if strings.Contains(template, name) {
			complete = complete && command != ""
			template = strings.ReplaceAll(template, name, command)
		}
	}
	return template, complete
}

// file is a path of a server, as a word for a shell. It is empty if it is not known.
func (p Program) file(name string, id raft.ServerID) string {
	path := map[string]string{"$KEYSTORE": p.Keystore, "$RAFT": p.Raft, "$KEK": p.KEK, "$CERTIFICATE": p.Certificate, "$CA": p.CA}[name]
	if path == "" {
		return ""
	}
	return quote(strings.ReplaceAll(path, "$SERVER", string(id)))
}

// quote quotes a word for a shell, if it is not as plain as most.
func quote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@,=", r)
	}
	if strings.TrimFunc(word, plain) == "" && word != "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

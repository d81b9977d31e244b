# Reads headers (a line of base64 each) from stdin; prints who each way of reading finds in their address fields, as JSON.
use strict;
use warnings;
use Email::Address::XS;
use Encode qw(decode);
use JSON::PP;
use Mail::Address;
use MIME::Base64;

my @fields = qw(from sender reply-to to cc);
my $json = JSON::PP->new->canonical->ascii;

sub xs { map { $_->address // '' } Email::Address::XS->parse($_[0]) }
sub tools { map { $_->address } Mail::Address->parse($_[0]) }

my %readings = (
    'Perl, Email::Address::XS' => \&xs,
    'Perl, Mail::Address' => \&tools,
    'Perl, MIME-Header decoded before Email::Address::XS' => sub { xs(decode('MIME-Header', $_[0])) },
    'Perl, MIME-Header decoded before Mail::Address' => sub { tools(decode('MIME-Header', $_[0])) },
);

my $number = 0;
while (my $line = <STDIN>) {
    my $header = decode_base64($line);
    for my $reading (sort keys %readings) {
        my %found = map { $_ => [] } @fields;
        my $ok = eval {
            for my $name (@fields) {
                for my $value ($header =~ /^$name:((?:[^\r\n]|\r\n[ \t])*)/gim) {
                    (my $unfolded = $value) =~ s/\r\n//g;
                    push @{$found{$name}}, $readings{$reading}->(decode('UTF-8', $unfolded));
                }
            }
            1;
        };
        print $json->encode({ message => $number, reading => $reading, ($ok ? (found => \%found) : (error => "$@")) }), "\n";
    }
    $number += 1;
}

# Reads headers (a line of base64 each) from stdin; prints whom the mail gem finds in their address fields, as JSON.
require 'base64'
require 'json'
require 'mail'

FIELDS = %w[from sender reply-to to cc].freeze

STDIN.each_line.with_index do |line, number|
  begin
    message = Mail.new(Base64.decode64(line))
    found = FIELDS.to_h { |name| [name, message[name] ? message[name].addresses : []] }
    puts JSON.generate(message: number, reading: 'Ruby, mail', found: found)
  rescue StandardError => e
    puts JSON.generate(message: number, reading: 'Ruby, mail', error: e.class.name)
  end
end
